"""Nothing -> the table of archives: how the paths of known collections of scans say subject, session, run and series.

A path that no row describes is of the archive "plain", which identities.py judges by what differs between paths.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

FREESURFER_BEST_FIRST = ("brain", "brainmask", "norm", "T1", "nu", "orig", "rawavg")
DATE = (r"(?:(?:19|20)\d\d(?:[01]\d[0-3]\d|[-_.][01]?\d[-_.][0-3]?\d)"
        r"|[0-3]?\d[-_.][01]?\d[-_.](?:19|20)\d\d)(?:[-_T]?\d{6})?")
"""A day, maybe with the time; six digits alone may be a person's number."""


@dataclass(frozen=True)
class Archive:
    """A row of the table: an archive, or a program's way to name files."""

    name: str
    """The value of --archive, and of the manifest's column `archive`."""
    example: str
    """A path below the searched folder."""
    pattern: str
    """Regular expression, searched in a path. Its group `subject` is the person; a `/` in it becomes `_`. Where there
    is a group `label` instead, it is a person's name that may end with a visit. Groups `session`, `run` and `series`
    may be missing."""
    source: str
    """Where the archive describes its names."""
    hints: tuple[str, ...]
    """Texts of which every path of the archive holds one: the pattern is searched in no other path."""
    session: str = ""
    """Regular expression whose first group that matches is the session, where `pattern` finds none."""
    run: str = ""
    """The same for the run, searched in the file's name without its ending."""
    best_first: tuple[str, ...] = ()
    """Regular expressions of a session's files, the best first; a file that matches none comes after all."""
    storage: tuple[str | None, ...] = ()
    """The directions in which a file's three indices grow, for each of `best_first`, where its header does not say."""
    regex: re.Pattern = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "regex", re.compile(self.pattern))


ARCHIVES = (
    # What the three indices of a file of OASIS-1 grow towards is not in its Analyze header. SUBJ_111 (256 x 256 x 160,
    # 1 mm) as in clinica's oasis_to_bids.py, whose affine is that of FreeSurfer's converter; RAW (256 x 256 x 128,
    # 1 x 1 x 1.25 mm) is stored likewise. T88_111 (176 x 208 x 176, 1 mm) is in Analyze's default order, transverse
    # unflipped. No source is known for OASIS-2.
    Archive("oasis-1", "OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.hdr",
            r"(?:^|[/_-])(?P<subject>OAS1_\d{4})_(?P<session>MR\d+)",
            "Marcus et al. 2007, doi 10.1162/jocn.2007.19.9.1498", ("OAS1_",), run=r"(?:^|_)mpr-(\d+)",
            best_first=(r"_t88_masked_gfc$", r"/T88_111/|_t88_gfc$", r"/SUBJ_111/|_sbj_111$", r"/RAW/|_mpr-\d+_anon$"),
            storage=("LAS", "LAS", "ASL", "ASL")),
    Archive("oasis-2", "OAS2_RAW_PART1/OAS2_0002_MR1/RAW/mpr-1.nifti.hdr",
            r"(?:^|[/_-])(?P<subject>OAS2_\d{4})_(?P<session>MR\d+)",
            "Marcus et al. 2010, doi 10.1162/jocn.2009.21407", ("OAS2_",), run=r"(?:^|_)mpr-(\d+)",
            best_first=(r"_t88_masked_gfc$", r"/T88_111/|_t88_gfc$", r"/SUBJ_111/|_sbj_111$", r"/RAW/|_mpr-\d+_anon$")),
    Archive("oasis-3", "OAS30001_MR_d0129/anat2/NIFTI/sub-OAS30001_ses-d0129_run-01_T1w.nii.gz",
            r"(?:^|[/_-])(?P<subject>OAS3\d{4})_\w+?_(?P<session>d\d{4})", "https://sites.wustl.edu/oasisbrains",
            ("OAS3",)),
    Archive("oasis-4", "OAS42000/OAS42000_MR_d3016/anat2/NIFTI/sub-OAS42000_sess-d3016_T1w.nii.gz",
            r"(?:^|[/_-])(?P<subject>OAS4\d{4})_\w+?_(?P<session>d\d{4})", "https://sites.wustl.edu/oasisbrains",
            ("OAS4",)),
    Archive("adni", "ADNI/002_S_0295/MPR__N3/2006-04-18_08_20_30.0/S13408/"
                    "ADNI_002_S_0295_MR_MPR__N3_S13408_I45108.nii",
            # Folders say the series and the day; a file's name only the series, the number between S and the image's I.
            r"(?:^|[/_-])(?P<subject>\d{3}_S_\d{4,5})(?=[/_.])(?:/(?P<series>[^/]+)/\d{4}-\d\d-\d\d_)?",
            "https://ida.loni.usc.edu", ("_S_",), session=r"/(\d{4}-\d\d-\d\d)_[\d_.]+/|_(S\d+)_I\d+"),
    Archive("loni", "PPMI/3107/MPRAGE_GRAPPA/2011-03-29_14_16_19.0/I269469/PPMI_3107_MR_MPRAGE_GRAPPA_I269469.nii",
            r"(?:^|/)(?P<subject>[^/]+)/(?P<series>[^/]+)/(?P<session>\d{4}-\d\d-\d\d)_\d\d_\d\d_\d\d[^/]*/[SI]\d+/[^/]+$",
            "https://ida.loni.usc.edu: PPMI, AIBL, NIFD and other studies", ("/S", "/I")),
    Archive("hcp", "100307/T1w/T1w_acpc_dc_restore_brain.nii.gz",
            r"(?:^|/)(?P<subject>\d{6}|HC[AD]\d{7})(?:_(?P<session>V\d+(?:_[A-Z]+)?))?/(?:T1w/T1w_|unprocessed/)",
            "WU-Minn HCP 1200 subjects data release, reference manual; Lifespan HCP release 2.0",
            ("/T1w/", "/unprocessed/"),
            best_first=(r"/T1w/T1w_acpc_dc_restore_brain$", r"/T1w/T1w_acpc_dc_restore$", r"/T1w/T1w_acpc_dc$",
                        r"/unprocessed/.*T1w_MPR1?")),
    Archive("brats-2023", "BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz",
            r"(?:^|/)(?P<subject>BraTS-[A-Za-z]+-\d{4,5})-(?P<session>\d{3})(?:[-/.]|$)",
            "https://www.synapse.org/brats2023", ("BraTS-",), best_first=(r"-t1n$",)),
    Archive("brats-2020", "BraTS20_Training_001/BraTS20_Training_001_t1.nii.gz",
            r"(?:^|/)(?P<subject>BraTS(?:20_(?:Training|Validation|Testing)_\d{3}|2021_\d{5}))(?=[_/.])",
            "https://www.med.upenn.edu/cbica/brats2020, brats2021", ("BraTS2",)),
    Archive("brats-2018", "HGG/Brats18_2013_10_1/Brats18_2013_10_1_t1.nii.gz",
            r"(?:^|/)(?P<subject>B[Rr][Aa][Tt][Ss]1[789]_[A-Za-z0-9_]+?)_(?P<session>\d+)(?:_(?:t1|t1ce|t2|flair|seg))?(?=[/.])",
            "https://www.med.upenn.edu/sbia/brats2018, brats2019", ("rats1", "RATS1", "raTS1")),
    Archive("uk-biobank", "1000017_20252_2_0/T1/T1_brain.nii.gz",
            r"(?:^|/)(?P<subject>\d{7})_2025[012]_(?P<session>\d)_\d(?=[/_.])",
            "UK Biobank brain imaging documentation, data fields 20252 and 20263", ("_2025",),
            best_first=(r"/T1_brain$", r"/T1$", r"/T1_orig_defaced$")),
    Archive("ixi", "IXI-T1/IXI002-Guys-0828-T1.nii.gz", r"(?:^|/)(?P<subject>IXI\d{3}-[A-Za-z]+-\d+)(?=[-_./])",
            "https://brain-development.org/ixi-dataset", ("IXI",)),
    Archive("miriad", "miriad_188_AD_M/miriad_188_AD_M_01_MR_1.nii",
            r"(?:^|/)(?P<subject>miriad_\d{3})_(?:AD|HC)_[MF]_(?P<session>\d\d)_MR_(?P<run>\d+)",
            "Malone et al. 2013, doi 10.1016/j.neuroimage.2012.12.044", ("miriad_",)),
    Archive("msseg", "Training/Center_01/Patient_01/Raw_Data/3DT1.nii.gz",
            r"(?:^|/)(?P<subject>Center_\d+/Patient_\d+)/(?:Raw|Preprocessed)_Data/",
            "Commowick et al. 2021, doi 10.1016/j.neuroimage.2021.118589", ("Patient_",),
            best_first=(r"/Preprocessed_Data/T1", r"/Raw_Data/3DT1")),
    Archive("isbi-ms", "training/training01/preprocessed/training01_01_mprage_pp.nii",
            r"(?:^|/)(?P<subject>(?:training|test)\d\d)_(?P<session>\d\d)_[a-z0-9]+(?:_pp)?(?=\.)",
            "Carass et al. 2017, doi 10.1016/j.neuroimage.2016.12.064", ("training", "test"),
            best_first=(r"_mprage_pp$", r"_mprage$")),
    Archive("wmh", "Utrecht/0/pre/T1.nii.gz",
            r"(?:^|/)(?P<subject>(?:Utrecht|Singapore|GE3T|Philips_VU_[^/]*|GE1T5)/(?:[^/]+/)?\d+)/(?:pre|orig)/[^/]+$",
            "Kuijf et al. 2019, doi 10.1109/TMI.2019.2905770", ("/pre/", "/orig/"),
            best_first=(r"/pre/T1$", r"/pre/3DT1$", r"/orig/T1$", r"/orig/3DT1$")),
    Archive("mrbrains", "training/1/pre/reg_T1.nii.gz",
            r"(?:^|/)(?:TrainingData|TestData|training|test)/(?P<subject>\d+)/(?:pre/|orig/)?(?:reg_)?T1[^/]*$",
            "https://mrbrains13.isi.uu.nl and https://mrbrains18.isi.uu.nl", ("T1",),
            best_first=(r"/pre/T1$", r"/pre/reg_T1$", r"\d/T1$", r"\d/T1_1mm$", r"/orig/T1$", r"/orig/reg_T1$")),
    Archive("nnunet", "Dataset001_Brain/imagesTr/brain_001_0000.nii.gz",
            r"(?:^|/)images(?:Tr|Ts|Va)/(?P<subject>[^/]+)_(?P<series>\d{4})(?=\.)",
            "Isensee et al. 2021, doi 10.1038/s41592-020-01008-z; dataset format of nnU-Net 2", ("/images", "images"),
            best_first=tuple(rf"_000{channel}$" for channel in range(10))),
    Archive("atlas-1", "Site1/031768/t01/031768_t1w_deface_stx.nii.gz",
            r"(?:^|/)Site\d+/(?P<subject>\d{6})/(?P<session>t\d\d)/", "Liew et al. 2018, doi 10.1038/sdata.2018.11",
            ("Site",)),
    Archive("mindboggle", "OASIS-TRT-20_volumes/OASIS-TRT-20-1/t1weighted_brain.nii.gz",
            r"(?:^|/)(?P<subject>(?:OASIS-TRT|MMRR|NKI-RS|NKI-TRT|HLN|Afterthought|Twins|Colin27)-\d+-\d+)/t1weighted",
            "Klein and Tourville 2012, doi 10.3389/fnins.2012.00171", ("t1weighted",),
            best_first=(r"/t1weighted_brain$", r"/t1weighted$")),
    Archive("lpba40", "LPBA40/native_space/S01/S01.native.mri.hdr",
            r"(?:^|/)(?P<subject>S\d\d)/(?:[^/]+/)*?(?P=subject)[._](?:native|delineation)[^/]*$",
            "Shattuck et al. 2008, doi 10.1016/j.neuroimage.2007.09.031", ("native", "delineation"),
            best_first=(r"\.delineation\.skullstripped$", r"\.native\.brain\.bfc$", r"\.native\.mri$")),
    Archive("ibsr", "IBSR_01/IBSR_01_ana_strip.nii.gz", r"(?:^|/)(?P<subject>IBSR_\d\d)(?=[_/])",
            "https://www.nitrc.org/projects/ibsr", ("IBSR_",), best_first=(r"_ana_strip$", r"_ana$")),
    Archive("miccai-2012", "training-images/1000_3.nii",
            r"(?:^|/)(?:training|testing)-images/(?P<subject>1\d{3})_(?P<session>\d)",
            "Landman and Warfield 2012, MICCAI workshop on multi-atlas labeling", ("-images/",)),
    Archive("calgary-campinas", "Original/CC0001_philips_15_55_M.nii.gz",
            r"(?:^|/)(?P<subject>CC\d{4})_(?:philips|siemens|ge)_(?:15|3)_\d+_[MF]",
            "Souza et al. 2018, doi 10.1016/j.neuroimage.2017.08.021", ("CC",)),
    Archive("adhd-200-athena", "KKI_preproc/1018959/wssd1018959_session_1_anat.nii.gz",
            r"(?:^|/)(?P<subject>\d{7})/w?s?s?d?(?P=subject)_(?P<session>session_\d+)_(?:rest_\d_)?anat",
            "Bellec et al. 2017, doi 10.1016/j.neuroimage.2016.06.034", ("_anat",),
            best_first=(r"/wssd\d+_\w+$", r"/ssd\d+_\w+$")),
    Archive("indi", "KKI/0050772/session_1/anat_1/mprage.nii.gz",
            r"(?:^|/)(?P<subject>[^/]+)/(?P<session>session_\d+)/(?P<series>[a-z]+)_\d+/[^/]+$",
            "https://fcon_1000.projects.nitrc.org: ABIDE, ADHD-200, CoRR", ("/session_",),
            best_first=(r"mprage_skullstripped$", r"mprage_noface$", r"mprage$", r"anat$")),
    Archive("fcp-1000", "Baltimore/sub17017/anat/mprage_skullstripped.nii.gz",
            r"(?:^|/)(?P<subject>sub\d{5})/anat/mprage_(?:skullstripped|anonymized)",
            "Biswal et al. 2010, doi 10.1073/pnas.0911855107", ("/anat/mprage_",),
            best_first=(r"mprage_skullstripped$", r"mprage_anonymized$")),
    Archive("xnat", "PROJECT_S01_MR1/scans/3-MPRAGE/resources/NIFTI/files/T1.nii.gz",
            r"(?:^|/)(?P<label>[^/]+)/(?:scans|SCANS)/(?P<run>\d[^/-]*)(?:-(?P<series>[^/]*))?/(?:resources/)?[^/]+/(?:files/)?[^/]+$",
            "https://wiki.xnat.org, download of images as a zip file", ("/scans/", "/SCANS/")),
    Archive("bids", "sub-01/ses-1/anat/sub-01_ses-1_run-1_T1w.nii.gz",
            r"^(?:.*[/_])?sub-(?P<subject>[^_/.]+)",
            "Gorgolewski et al. 2016, doi 10.1038/sdata.2016.44; Cam-CAN, ATLAS 2 and OpenNeuro are so", ("sub-",),
            session=r".*[/_]sess?-([^_/.]+)"),
    Archive("freesurfer", "bert/mri/brain.mgz",
            rf"(?:^|(?:^|/)(?P<label>[^/]+?)(?:\.long\.(?P<subject>[^/]+))?/)mri/(?:{'|'.join(FREESURFER_BEST_FIRST)})\.mg[zh]$",
            "https://surfer.nmr.mgh.harvard.edu/fswiki, cross-sectional, base and longitudinal streams", ("mri/",)),
    Archive("dcm2niix", "p01_t1_mprage_sag_20190312101500_3.nii.gz",
            r"(?:^|/)(?P<label>[^/]+?)_(?P<series>(?i:[^/]*(?:t1|mpr|spgr|bravo|tfe)[^/]*?))_(?P<session>(?:19|20)\d{12})_(?P<run>\d+)[a-z]*(?=\.)",
            "https://github.com/rordenlab/dcm2niix, names by its default %f_%p_%t_%s", ("_20", "_19")),
)
"""The archives that are known, in the order in which they are tried."""
BY_NAME = {archive.name: archive for archive in ARCHIVES}


def first_match(name: str, rows: Sequence[Archive] = ARCHIVES) -> tuple[Archive, re.Match] | None:
    """Return the first row that describes a path, and where its pattern matches; None if there is none."""
    for row in rows:
        for hint in row.hints:
            if hint in name:
                if match := row.regex.search(name):
                    return row, match
                break
    return None


def table() -> str:
    """Return the table as lines of text: name, an example path, and the source."""
    width = max(len(archive.name) for archive in ARCHIVES)
    return "\n".join(f"{each.name:{width}}  {each.example}\n{'':{width}}  {each.source}" for each in ARCHIVES)
