#!/usr/bin/env bash
# Tries jobs/slurm.sbatch on a Slurm of this machine's own: as root, with Debian's slurm-wlm and munge installed, and
# after `make wheel`. The wheel is installed in an environment that takes all else from .venv.
#
# The first job paints all; of the second the time is up before it is done, so that it goes back into the queue.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" SLURM_CONF

folder=$(mktemp -d -t batchnst-slurm-XXXX)
SLURM_CONF=$folder/slurm.conf
host=$(hostname -s)
mkdir "$folder"/{state,spool}

python -m venv "$folder/venv"
packages=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$packages" >"${packages/#$PWD\/.venv/$folder/venv}/packages.pth"
"$folder/venv/bin/pip" install --quiet --no-deps --force-reinstall build/dist/batchnst-*.whl
sed "1s|.*|#!$folder/venv/bin/python|" .venv/bin/ray >"$folder/venv/bin/ray"
chmod +x "$folder/venv/bin/ray"

cat >"$SLURM_CONF" <<END
ClusterName=here
SlurmctldHost=$host
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName=$host CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
END

stop() {
    scancel --user=root || true
    for daemon in slurmd slurmctld munge; do
        [[ -f $folder/$daemon.pid ]] && kill "$(<"$folder/$daemon.pid")"
    done
}
trap stop EXIT
mungekey --create --keyfile "$folder/munge.key"
munged --force --key-file "$folder/munge.key" --socket "$folder/munge.socket" --pid-file "$folder/munge.pid" \
    --log-file "$folder/munge.log" --seed-file "$folder/munge.seed"
slurmctld
slurmd

manifest() { # ROWS NAME: of many sizes, and so in many batches, some of which are done when the time is up
    echo content,style,id,size >"$folder/$2.csv"
    for ((i = 0; i < $1; i++)); do
        echo "$PWD/manifests/images/coffee.png,$PWD/manifests/images/swirls.png,pair-$i,$((96 + 4 * (i % 10)))" >>"$folder/$2.csv"
    done
}

submit() { # NAME OPTIONS…
    VENV=$folder/venv MANIFEST=$folder/$1.csv OUT=$folder/$1 sbatch --parsable --nodes=1 --gpus-per-node=0 \
        --cpus-per-task="$(nproc)" --output="$folder/$1.log" "${@:2}" jobs/slurm.sbatch
}

finish() { # NAME JOB
    while [[ $(squeue --noheader --jobs "$2" 2>/dev/null) ]]; do
        sleep 2
        if scontrol show job "$2" | grep -q "JobState=PENDING.*Reason=BeginTime"; then
            scontrol update JobId="$2" StartTime=now TimeLimit=20 # as the next night would
        fi
    done
    echo "== $1: $(scontrol show job "$2" | grep -oE 'JobState=\w+|Restarts=\w+|ExitCode=\S+' | tr '\n' ' ')"
    grep -v scripts.py "$folder/$1.log" # what `ray stop` says of every process
}

manifest 4 whole
manifest 60 late
finish whole "$(submit whole)"
finish late "$(submit late --time=3 --signal=B:TERM@90)"
python - "$folder" <<'END'
import sys
from collections import Counter

from batchnst import read_ledger

for name, pairs in (("whole", 4), ("late", 60)):
    rows = read_ledger(f"{sys.argv[1]}/{name}", "pairs").to_table().to_pylist()
    done = Counter(row["pair_id"] for row in rows if row["status"] == "ok")
    runs = len({row["run_id"] for row in rows})
    print(f"{name}: {len(done)} of {pairs} pairs done, each once: {set(done.values()) == {1}}, in {runs} runs")
END
