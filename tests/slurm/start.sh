#!/usr/bin/env bash
# A real Slurm on this machine's loopback, for the tests: `start.sh start DIR`, `start.sh stop DIR`.
# Needs root and Debian's slurm-wlm and munge; installs nothing. DIR takes configuration, keys, logs and state.
# Tell Slurm's commands of it with SLURM_CONF=DIR/slurm.conf. There is no accounting storage.
set -euo pipefail
command=${1:?start or stop} dir=$(realpath -m "${2:?a directory}")

stop() {
    for name in slurmd slurmctld munged; do
        [ -f "$dir/$name.pid" ] || continue
        pid=$(cat "$dir/$name.pid")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 50); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$pid" 2>/dev/null || true
        rm -f "$dir/$name.pid"
    done
}

start() {
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" >/dev/null || { echo "there is no $program; install slurm-wlm and munge" >&2; exit 1; }
    done
    mkdir -p "$dir"/{state,spool,log}
    # munged asks for a key and a socket that others cannot reach by a group's right
    chmod 755 "$dir"
    head -c 1024 /dev/urandom >"$dir/munge.key"
    chmod 600 "$dir/munge.key"
    munged --force --socket="$dir/munge.socket" --key-file="$dir/munge.key" --pid-file="$dir/munged.pid" \
        --log-file="$dir/log/munged.log" --seed-file="$dir/munge.seed" --num-threads=2

    host=$(hostname -s)
    cores=$(nproc --all)
    port=$((20000 + RANDOM % 10000))
    cat >"$dir/slurm.conf" <<EOF
ClusterName=nacme
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CryptoType=crypto/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
KillWait=15
MinJobAge=20
SchedulerParameters=sched_interval=2,batch_sched_delay=1
ReturnToService=2
MpiDefault=none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
EOF
    export SLURM_CONF=$dir/slurm.conf
    slurmctld -f "$SLURM_CONF"
    slurmd -f "$SLURM_CONF" -N "$host"
    for _ in $(seq 150); do
        if [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; then
            echo "Slurm runs; export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.2
    done
    echo "Slurm did not come up within 30 seconds; see $dir/log" >&2
    tail -n 5 "$dir"/log/*.log >&2
    stop
    exit 1
}

case $command in
start) start ;;
stop) stop ;;
*) echo "start or stop, not $command" >&2; exit 2 ;;
esac
