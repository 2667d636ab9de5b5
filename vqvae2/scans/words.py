"""The name of a file, a folder or a series -> whether it says a T1-weighted scan, or says something else."""

import re

T1_WORDS = frozenset(re.findall(r"\w+", """
    t1w t1 mprage mpr t1mprage spgr fspgr irfspgr bravo mp2rage memprage rage mdeft 3dt1 tfl t1n t1weighted t1tfe
    3dtfe"""))
SEGMENTATIONS = frozenset(re.findall(r"\w+", """
    seg dseg probseg aseg wmparc fseg segmentation parcellation mask brainmask defacemask label labels lesion roi
    atlas segm staple"""))
NOT_SCANS = SEGMENTATIONS | frozenset(re.findall(r"\w+", """
    t1ce t1gd t1c t1map t1rho t2 t2w t2map t2star t2starw inplanet1 inplanet2 flair bold sbref dwi dti swi swan mra
    angio tof epi fmap fieldmap magnitude magnitude1 magnitude2 phase phasediff phase1 phase2 cbf adc m0scan minip mip
    ct1 t1wks truth contrast postcontrast stir b0map mtsat lesionseg segmented tissueseg thickness prob tumor tumour
    wholebrainmask t2flair flair3d pdt2 av45 fdg mtr mts unit1 inv1 inv2 preview thumb thumbnail pet biasfield
    t1wdividedbyt2w localizer scout"""))
NOT_SCANS_AS_LAST_WORD = frozenset(re.findall(r"\w+", """
    pd pdw asl fa md rest task csf gm wm ribbon aparc ct uni bias gt"""))
NOT_SCANS_IN_A_WORD = re.compile(r"""(?x)hippocamp|fmri|calib|field.?map|locali[sz]er|perfusion|shim|asset|pveseg
    |[a-z]mask(?![a-z])|(?<![a-z])(?:pve|mixeltype|jac|jacobian|nonlin|warp|gre|smartbrain|survey|eyes)(?![a-z])""")
CONTRAST_AGENT = frozenset(re.findall(r"\w+", "ce gd gad gado gadolinium postgd t1gad"))
"""A T1-weighted scan after a contrast agent comes after one without."""
OTHER_SERIES = frozenset(re.findall(r"\w+", """
    ep2d diff diffusion mddw trace tracew colfa tensor asl pasl pcasl loc pilot haste report screenshot aahscout
    aahead"""))
"""Words that only the descriptions of series are judged by: a file may be named by them for another reason."""


WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """Return its words in lower case."""
    return WORD.findall(text.lower())


def says_t1(*texts: str) -> bool:
    """Return whether one of the texts says a T1-weighted scan: MPRAGE, SPGR, T1w."""
    return not T1_WORDS.isdisjoint(words_of(" ".join(texts)))


def says_contrast_agent(text: str) -> bool:
    """Return whether a text says that a contrast agent was given: T1_Gd, ce-gadolinium."""
    return not CONTRAST_AGENT.isdisjoint(words_of(text))


def why_other_series(series: str) -> str:
    """Return how what an archive's folder calls a series says that it is no T1-weighted scan, such as `says "flair"`;
    empty if it does not."""
    return _why_other(series, words_of(series))


def why_other_scan(stem: str) -> str:
    """Return the same of the name of a file, without its ending, or of a folder."""
    words = words_of(stem)
    return _why_other(stem, words) or (
        f'ends with "{words[-1]}"' if words and words[-1] in NOT_SCANS_AS_LAST_WORD else "")


def _why_other(text: str, words: list[str]) -> str:
    if part := NOT_SCANS_IN_A_WORD.search(text.lower()):
        return f'says "{next((word for word in words if part[0] in word), part[0])}"'
    return "" if NOT_SCANS.isdisjoint(words) else f'says "{next(word for word in words if word in NOT_SCANS)}"'


def why_other_description(description: str) -> str:
    """Return the same of a scanner's description of a series, such as ep2d_diff_TRACEW or 3 Plane Loc."""
    said = next((word for word in words_of(description) if word in OTHER_SERIES), "")
    return why_other_scan(description) or (f'says "{said}"' if said else "")


def natural(name: str) -> list:
    """Return a key for sorting that puts anat2 before anat10."""
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
