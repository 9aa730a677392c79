#!/bin/sh
# Install what the tests on a Slurm cluster need, where this user may: Debian's slurm-wlm, munge and iproute2. Nothing is started or
# configured: each test starts a cluster of its own, in a folder and on ports of its own.
set -eu

PATH=$PATH:/usr/sbin:/sbin

is_there() { for program in slurmctld slurmd munged sbatch ip; do command -v "$program" >/dev/null || return 1; done; }

if is_there; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    printf '%s\n' "setup: Slurm is not installed, and this user cannot install it; its tests are skipped, with the reason" \
        "setup: to have them: sudo apt-get install slurm-wlm munge iproute2" >&2
    exit 0
fi
printf '%s\n' "setup: installing slurm-wlm, munge and iproute2"
export DEBIAN_FRONTEND=noninteractive
# Services that the packages bring would need a configuration of this machine, and are not used.
policy=/usr/sbin/policy-rc.d
made=
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    made=$policy
fi
trap 'if [ -n "$made" ]; then rm -f "$made"; fi' EXIT
apt-get -qq update || printf '%s\n' "setup: the lists of packages could not be updated; trying with those that are here" >&2
apt-get -qq install --no-install-recommends slurm-wlm munge iproute2 >/dev/null
is_there || { printf '%s\n' "setup: slurm-wlm was installed, and its programs are not there" >&2; exit 1; }
