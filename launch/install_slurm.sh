#!/usr/bin/env bash
# Install Debian's Slurm and start it on this machine, to try launch/slurm.sh:
#
#   sudo launch/install_slurm.sh && sinfo
#
# Works without systemd, in a container. Starts only the daemons that do not run yet, so it may run
# again. Keeps an existing configuration.
set -euo pipefail

if [[ $(id -u) != 0 ]]; then
  echo "error: needs root: sudo $0" >&2
  exit 1
fi

if ! command -v slurmctld slurmd munged > /dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update --quiet
  apt-get install --quiet --yes --no-install-recommends slurm-wlm munge
fi

host=$(hostname --short)
if [[ ! -e /etc/slurm/slurm.conf ]]; then
  mkdir --parents /etc/slurm
  # linuxproc and no task plugin: a container cannot create cgroups.
  cat > /etc/slurm/slurm.conf << CONF
ClusterName=one
SlurmctldHost=$host
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurmctld.log
SlurmdLogFile=/var/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobRequeue=1
$(slurmd -C | head -n 1) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
fi
mkdir --parents /var/spool/slurmctld /var/spool/slurmd

# Slurm's daemons find each other through the munge socket.
if ! munge --no-input > /dev/null 2>&1; then
  install --directory --owner=munge --group=munge --mode=755 /run/munge
  runuser --user=munge -- munged
fi
pgrep --exact slurmctld > /dev/null || slurmctld
pgrep --exact slurmd > /dev/null || slurmd

for _ in {1..30}; do
  if sinfo --noheader --format=%t 2> /dev/null | grep --quiet --extended-regexp '^(idle|mix|alloc)$'; then
    sinfo
    exit 0
  fi
  sleep 1
done
echo "error: no node came up; see /var/log/slurmctld.log and /var/log/slurmd.log" >&2
exit 1
