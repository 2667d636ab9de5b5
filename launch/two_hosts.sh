#!/usr/bin/env bash
# Trains on two hosts with plain torchrun. Run the same line on both hosts; HOST is the first host's name or address:
#
#     launch/two_hosts.sh HOST -- train_vqvae.py --dataset oasis --batch 16 --epochs 60 --savename brain
#
# torchrun's own flags may stand before the --; they override the flags below. With
#
#     launch/two_hosts.sh HOST --nnodes=1:2 --max_restarts=3 -- train_vqvae.py … --batch 16 --global-batch 256
#
# the second host may come later, go, and come back: the run goes on with the hosts that are there, at the same global
# batch (here 2 hosts x 8 GPUs x 16; without --global-batch the hosts at the first start fix it). The first host must
# stay, since it holds the rendezvous. The results folder must be on a disk that both hosts share.
#
# Set these in the environment if the defaults do not fit:
#     PYTHON              .venv/bin/python
#     PROCESSES           on this host. Default: one for each GPU, or one
#     PORT                29500, open on the first host; torch takes further ports as it needs them
#     RDZV_CONF           more for torchrun's --rdzv_conf, such as join_timeout=300
#     GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME   the network between the hosts. Default: the one that leads to HOST
set -eu -o pipefail

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }

refuse() { echo "two_hosts.sh: $HOST: expected $1" >&2; exit 2; }

PYTHON=${PYTHON:-.venv/bin/python}
PORT=${PORT:-29500}
PROCESSES=${PROCESSES:-$(nvidia-smi --list-gpus 2>/dev/null | grep -c . || true)}
[ "$PROCESSES" != 0 ] || PROCESSES=1

[ $# -ge 1 ] || usage
HOST=$1; shift
case $HOST in -*) usage ;; esac
own_flags=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do own_flags+=("$1"); shift; done
[ $# -ge 2 ] || usage
shift

command -v "$PYTHON" >/dev/null || {
    echo "two_hosts.sh: PYTHON: expected a Python interpreter, found no $PYTHON. Run make venv, or set PYTHON." >&2; exit 2
}

# Which address of this host do the others see, and is it HOST itself? torch would ask for this host's name, which on
# many systems leads to 127.0.1.1, and the two would wait for each other.
read -r address is_first < <("$PYTHON" - "$HOST" 2>/dev/null <<'END'
import socket, sys
family, kind, _, _, first = socket.getaddrinfo(sys.argv[1], 9, type=socket.SOCK_DGRAM)[0]
with socket.socket(family, kind) as here:
    here.connect(first)  # sends nothing: it only chooses the way
    address = here.getsockname()[0]
print(address, int(address == first[0]))
END
) || refuse "the first host's name or address, found one that this host cannot reach. Check the name and the network."
case $HOST,$address in
    localhost,* | 127.*,* | ::1,*) ;;  # both "hosts" are this one, for a trial
    *,127.* | *,::1) refuse "an address that the other host can reach, found $address. Give the address itself." ;;
esac

network=$(ip -oneline address show to "$address" 2>/dev/null | awk 'NR == 1 { print $2 }' || true)
if [ -n "$network" ]; then
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$network} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$network}
fi

# Without it, in torch 2.13, a host that joins waits for an address that was given only at the first start.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# An old torch ignores these two. Under nohup a closed terminal is to change nothing; torchrun would heed it.
signals=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
[ -z "$(trap -p HUP)" ] || signals=${signals/SIGHUP,/}
export PET_SIGNALS_TO_HANDLE=${PET_SIGNALS_TO_HANDLE:-$signals}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-90}  # seconds to save in
exec "$PYTHON" -m torch.distributed.run --nnodes=2 --nproc_per_node="$PROCESSES" --rdzv_backend=c10d \
    --rdzv_id=two-hosts --rdzv_endpoint="$HOST:$PORT" --local_addr="$address" \
    --rdzv_conf="is_host=$is_first${RDZV_CONF:+,$RDZV_CONF}" ${own_flags[@]+"${own_flags[@]}"} "$@"
