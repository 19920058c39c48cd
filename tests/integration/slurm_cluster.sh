#!/bin/sh
# A Slurm of one node, this machine, for the tests: slurm_cluster.sh start FOLDER | stop FOLDER. As root, with Debian's
# slurm-wlm and munge installed. All that it writes lies in FOLDER; clients need SLURM_CONF=FOLDER/slurm.conf.
# Two partitions: a job in `urgent` pre-empts one in `debug`, which is then queued again.
set -eu
action=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)

stop() {
    for name in slurmctld slurmd munged; do
        if [ -f "$folder/$name.pid" ]; then
            kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
            rm -f "$folder/$name.pid"
        fi
    done
}

start() {
    for program in munged slurmctld slurmd sbatch; do
        PATH=$PATH:/usr/sbin command -v $program >/dev/null || {
            echo "slurm_cluster.sh: no $program; apt-get install slurm-wlm munge" >&2
            exit 2
        }
    done
    PATH=$PATH:/usr/sbin
    mkdir -p "$folder/state" "$folder/spool"
    chmod 755 "$folder"
    dd if=/dev/urandom of="$folder/munge.key" bs=128 count=1 2>/dev/null
    chmod 600 "$folder/munge.key"
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
    host=$(hostname -s)
    cat >"$folder/slurm.conf" <<CONF
ClusterName=fsr
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# what is queued again waits until its credential has run out, two minutes by default
AuthInfo=socket=$folder/munge.socket,cred_expire=10
CredType=cred/munge
SlurmctldPort=${SLURM_TEST_PORT:-26817}
SlurmdPort=$((${SLURM_TEST_PORT:-26817} + 1))
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
SchedulerParameters=batch_sched_delay=1,sched_interval=5,requeue_delay=1
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=$(awk '/MemTotal/ {print int($2 / 1280)}' /proc/meminfo) State=UNKNOWN
PartitionName=debug Nodes=$host Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=urgent Nodes=$host MaxTime=60 PriorityTier=10 PreemptMode=off
CONF
    echo "ConstrainCores=no" >"$folder/cgroup.conf"   # containers have no cgroups of their own to give
    export SLURM_CONF="$folder/slurm.conf"
    slurmctld
    slurmd
    for _ in $(seq 60); do
        if sinfo --noheader --format=%t 2>/dev/null | grep -q idle; then
            exit 0
        fi
        sleep 1
    done
    echo "slurm_cluster.sh: the node did not become idle; see $folder/*.log" >&2
    stop
    exit 1
}

case $action in
start | stop) $action ;;
*) echo "slurm_cluster.sh start FOLDER | stop FOLDER" >&2 && exit 2 ;;
esac
