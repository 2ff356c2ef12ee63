#!/usr/bin/env bash
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# build.sh OUTDIR: makes the lab's guest images from Debian packages, without root rights and without loop mounts.
#
#   OUTDIR/guest.qcow2          boots by BIOS (syslinux) and by UEFI (systemd-boot) from one FAT partition; ext4 root
#   OUTDIR/rescue.qcow2         the same, with another label, host name, and no counter
#   OUTDIR/guest-generic.qcow2  the same as guest, with Debian's generic kernel: slower to boot, but has AHCI and e1000
#   OUTDIR/vmlinuz, initrd      for direct kernel boot
#
# Kernels are downloaded with apt-get; nothing is installed.
set -euo pipefail
umask 022

HERE=$(dirname "$(readlink -f "$0")")
mkdir -p "$1"
OUT=$(readlink -f "$1")
WORK=$(mktemp -d "$OUT/.build.XXXXXX")
trap 'rm -rf "$WORK"' EXIT

BOOT_MIB=24
ROOT_MIB=48
# What finds the disk, the network, the agent's port, the power button and a cidata disk. Unknown names are left out
# (the cloud kernel has no AHCI and no e1000).
MODULES="virtio_pci virtio_blk virtio_scsi ata_piix ahci sd_mod sr_mod virtio_net e1000 virtio_console virtio_balloon
virtio_rng button evdev ext4 isofs vfat nls_cp437 nls_ascii nls_iso8859-1"
CMDLINE="console=tty0 console=ttyS0 quiet panic=1 random.trust_cpu=on mitigations=off rw"

need() { # COMMAND PACKAGE
  command -v "$1" >/dev/null || { echo "build.sh: $1 is missing: install $2" >&2; exit 3; }
}

# kernel FLAVOR DIR: Debian's current kernel of that flavor, as DIR/vmlinuz, and an initramfs as DIR/initrd
kernel() {
  local package dir=$2 version tree=$2/tree initrd=$2/initramfs module file base
  package=$(apt-cache depends "linux-image-$1" | awk '/Depends: linux-image/ {print $2; exit}')
  [ -n "$package" ] || { echo "build.sh: apt knows no linux-image-$1: run apt-get update" >&2; exit 3; }
  mkdir -p "$dir" "$tree" "$initrd"/{bin,dev,proc,sys,mnt,modules}
  (cd "$dir" && apt-get -qq download "$package" 2>"$dir/apt.log") || {
    cat "$dir/apt.log" >&2; echo "build.sh: cannot download $package: run apt-get update" >&2; exit 3; }
  dpkg-deb -x "$dir/$package"_*.deb "$tree"
  version=$(ls "$tree/lib/modules")
  cp "$tree/boot/vmlinuz-$version" "$dir/vmlinuz"
  depmod -b "$tree" "$version"
  for module in $MODULES; do
    modprobe -d "$tree" -S "$version" -D "$module" 2>/dev/null || true
  done | awk '$1 == "insmod" && !seen[$2]++ {print $2}' > "$dir/order"
  while read -r file; do
    base=${file##*/}
    case $base in
      *.xz) base=${base%.xz}; xz -dc "$file" > "$initrd/modules/$base" ;;
      *) cp "$file" "$initrd/modules/$base" ;;
    esac
    echo "$base" >> "$initrd/modules/order"
  done < "$dir/order"
  cp /bin/busybox "$initrd/bin/busybox"
  { echo '#!/bin/busybox sh'; cat "$HERE/initramfs-init"; } >"$initrd/init"
  chmod 755 "$initrd/init"
  (cd "$initrd" && find . | sort | cpio -o -H newc --quiet | gzip -1) > "$dir/initrd"
}

# rootfs DIR NAME: the guest's root file system
rootfs() {
  local root=$1 name=$2 applet library
  mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,lib64,lib/x86_64-linux-gnu,dev,proc,sys,tmp,run,root,mnt,data} \
    "$root"/var/{run,log} "$root"/etc/acpi
  cp /bin/busybox "$root/bin/busybox"
  for applet in $(/bin/busybox --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
  done
  for applet in init poweroff reboot halt; do ln -s ../bin/busybox "$root/sbin/$applet"; done
  cp -L /usr/sbin/qemu-ga /sbin/blkid "$root/usr/sbin/"
  cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"
  ldd /usr/sbin/qemu-ga /sbin/blkid | awk '$3 ~ /^\// && !seen[$3]++ {print $3}' | while read -r library; do
    cp -L "$library" "$root/lib/x86_64-linux-gnu/"
  done
  cp -R "$HERE/rootfs/." "$root/"
  chmod 755 "$root"/sbin/shutdown "$root"/usr/sbin/* "$root"/etc/init.d/rcS "$root"/etc/acpi/PWRF/00000080 \
    "$root"/usr/share/udhcpc/default.script
  [ "$name" = rescue ] && sed -i /usr.sbin.counter/d "$root/etc/inittab"
  echo "$name" > "$root/etc/hostname"
  printf 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n' > "$root/etc/passwd"
  printf 'root:x:0:\nuser:x:1000:\n' > "$root/etc/group"
  printf 'root:!:19000:0:99999:7:::\nuser:!:19000:0:99999:7:::\n' > "$root/etc/shadow"
  chmod 600 "$root/etc/shadow"
}

# image NAME LABEL KERNELDIR
image() {
  local name=$1 label=$2 kernel=$3 raw=$WORK/$1.raw dir=$WORK/$1.d fat args
  mkdir -p "$dir"
  rootfs "$dir/root" "$label"
  args="root=LABEL=$label $CMDLINE"
  truncate -s $((1 + BOOT_MIB + ROOT_MIB + 1))M "$raw"
  printf 'label: dos\nlabel-id: 0x6b766d6f\nstart=2048,size=%d,type=e,bootable\nstart=%d,size=%d,type=83\n' \
    $((BOOT_MIB * 2048)) $((2048 + BOOT_MIB * 2048)) $((ROOT_MIB * 2048)) | sfdisk -q "$raw"
  dd if=/usr/lib/syslinux/mbr/mbr.bin of="$raw" bs=440 count=1 conv=notrunc status=none
  fat=$raw@@1M
  mformat -i "$fat" -h 16 -s 63 -t $((BOOT_MIB * 2048 / 16 / 63)) -H 2048 -v BOOT ::
  printf 'default linux\nprompt 0\ntimeout 1\nlabel linux\nkernel vmlinuz\ninitrd initrd\nappend %s\n' "$args" \
    > "$dir/syslinux.cfg"
  mmd -i "$fat" ::/EFI ::/EFI/BOOT ::/loader ::/loader/entries
  printf 'timeout 0\ndefault linux.conf\n' > "$dir/loader.conf"
  printf 'title linux\nlinux /vmlinuz\ninitrd /initrd\noptions %s\n' "$args" > "$dir/linux.conf"
  mcopy -i "$fat" "$kernel/vmlinuz" "$kernel/initrd" "$dir/syslinux.cfg" ::/
  mcopy -i "$fat" /usr/lib/systemd/boot/efi/systemd-bootx64.efi ::/EFI/BOOT/BOOTX64.EFI
  mcopy -i "$fat" "$dir/loader.conf" ::/loader/
  mcopy -i "$fat" "$dir/linux.conf" ::/loader/entries/
  syslinux -t $((1024 * 1024)) -i "$raw"
  mke2fs -q -t ext4 -L "$label" -d "$dir/root" -E "root_owner=0:0,offset=$(((1 + BOOT_MIB) * 1048576))" -m 0 \
    "$raw" $((ROOT_MIB * 1024))k 2>"$dir/mke2fs.log" || { cat "$dir/mke2fs.log" >&2; exit 1; }
  qemu-img convert -f raw -O qcow2 "$raw" "$OUT/$name.qcow2"
}

PATH=$PATH:/usr/sbin:/sbin
need busybox busybox-static
need qemu-ga qemu-guest-agent
need syslinux syslinux
need mformat mtools
need sfdisk fdisk
need mke2fs e2fsprogs
need depmod kmod
need cpio cpio
need qemu-img qemu-utils
need xz xz-utils
for file in /usr/lib/syslinux/mbr/mbr.bin:syslinux-common \
  /usr/lib/systemd/boot/efi/systemd-bootx64.efi:systemd-boot-efi; do
  [ -e "${file%:*}" ] || { echo "build.sh: ${file%:*} is missing: install ${file#*:}" >&2; exit 3; }
done

kernel cloud-amd64 "$WORK/cloud"
kernel amd64 "$WORK/generic"
image guest guest "$WORK/cloud"
image rescue rescue "$WORK/cloud"
image guest-generic guest "$WORK/generic"
cp "$WORK/cloud/vmlinuz" "$WORK/cloud/initrd" "$OUT/"
