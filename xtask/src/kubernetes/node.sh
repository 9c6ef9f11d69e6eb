#!/bin/sh
# The inside of a machine of the cluster, started in namespaces of its own: a root over this machine's that is written to in
# memory, its own /run, /proc, /sys, cgroups and bpffs; then it is pid 1 there.
# Usage: node.sh NAME FOLDER [SHOWN…]; what is shown of this machine has the same path there.
set -eu
name=$1 folder=$2
shift 2
mount --make-rprivate /
mkdir -p "$folder/containerd" "$folder/kubelet" "$folder/shared" "$folder/over"
mount -t tmpfs -o size=2g tmpfs "$folder/over"
mkdir "$folder/over/upper" "$folder/over/work" "$folder/over/root"
root=$folder/over/root
mount -t overlay -o "lowerdir=/,upperdir=$folder/over/upper,workdir=$folder/over/work" overlay "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
# ID PARENT DEVICE ROOT PLACE OPTIONS [TAGS] - TYPE SOURCE SUPER_OPTIONS
grep -E ' /sys/fs/cgroup(/[a-z0-9,_=-]*)? [^ ]*( [^-][^ ]*)* - cgroup2? ' /proc/self/mountinfo | while read -r _ _ _ _ place rest; do
  rest=${rest#*- }
  hierarchy=$root/sys/fs/cgroup/${place##*/}
  case $rest in
    cgroup2*)
      # Where it is mounted alone, its place is /sys/fs/cgroup itself.
      [ "$place" = /sys/fs/cgroup ] && hierarchy=$root/sys/fs/cgroup
      mkdir -p "$hierarchy"
      mount -t cgroup2 cgroup2 "$hierarchy" ;;
    *)
      options=${rest##* }
      mkdir -p "$hierarchy"
      mount -t cgroup -o "${options#rw,}" cgroup "$hierarchy" ;;
  esac
done
mount -t bpf bpf "$root/sys/fs/bpf"
mount --rbind /dev "$root/dev"
mount --make-rslave "$root/dev"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mkdir -p "$root/var/lib/containerd" "$root/var/lib/kubelet" "$root/run/node" "$root/run/old"
# Layers of containers cannot be in memory that is an overlay already.
mount --bind "$folder/containerd" "$root/var/lib/containerd"
mount --bind "$folder/kubelet" "$root/var/lib/kubelet"
mount --bind "$folder/shared" "$root/run/node"
for shown; do
  mkdir -p "$root$shown"
  mount --bind "$shown" "$root$shown"
done
# What kubelet would set for the whole machine looks to it as if it were set.
mkdir "$root/run/sysctl"
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  file=$root/run/sysctl/$(echo "${setting%%=*}" | tr / -)
  echo "${setting#*=}" > "$file"
  mount --bind "$file" "$root/proc/sys/${setting%%=*}"
done
cd "$root"
pivot_root . run/old
umount -l /run/old
rmdir /run/old
mount --make-rshared /
hostname "$name"
ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward
mkdir -p /opt/cni/bin /etc/cni/net.d
cp /usr/lib/cni/* /opt/cni/bin/
echo "nameserver 127.0.0.1" > /run/resolv.conf
touch /run/node/ready
while :; do sleep 3600 & wait $! || :; done
