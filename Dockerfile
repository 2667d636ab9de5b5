# A container of the command vqvae2, with the weights in pretrained/. Torch is the CPU's, unless told otherwise:
#
#   docker build -t vqvae2 .
#   docker build -t vqvae2 --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 .      # for NVIDIA GPUs
#
# Folders of yours are mounted: what is read with :ro, what is written without. --user makes the files yours.
#
#   docker run --rm -v "$PWD/scans:/scans:ro" -v "$PWD/out:/out" --user "$(id -u):$(id -g)" \
#       vqvae2 run --preset brain-128 --scans /scans --out /out
#   docker run --rm -v "$PWD/scans:/scans:ro" -v "$PWD/out:/out" --user "$(id -u):$(id -g)" \
#       vqvae2 extract --preset brain-128 --scans /scans --out /out/slices
#   docker run --rm --gpus all -v "$PWD/out:/out" --user "$(id -u):$(id -g)" \
#       vqvae2 train-vqvae --preset brain-128 --data /out/slices --results /out/results
#   docker run --rm -v "$PWD/scans:/scans:ro" -v "$PWD/out:/out" --user "$(id -u):$(id -g)" \
#       vqvae2 predict --vqvae vqvae-128 /scans --out /out/predicted
#
# Several processes share images through /dev/shm, of which Docker gives 64 MB: add --ipc=host, or --shm-size=8g. Under
# torchrun: --entrypoint python, and after the name of the image: -m torch.distributed.run … -m vqvae2 train-vqvae …
# A stop (docker stop, SIGTERM) saves and ends with 75; -t 90 gives it the time, and the same command goes on.
FROM python:3.11-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# Any user may run it, one that the container does not know too: caches go where everybody may write.
ENV PYTHONUNBUFFERED=1 HOME=/tmp USER=vqvae2

# pretrained/ is looked up in the working folder.
WORKDIR /opt/vqvae2

# Torch is much larger than all else and changes least, so it comes first.
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt --extra-index-url "$TORCH_INDEX" torch

COPY pyproject.toml README.md LICENSE ./
COPY vqvae2 vqvae2
RUN pip install --no-cache-dir --constraint constraints.txt --extra-index-url "$TORCH_INDEX" ".[fast,dicom]"

COPY pretrained pretrained

USER 1000
ENTRYPOINT ["vqvae2"]
CMD ["--help"]
