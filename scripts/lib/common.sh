# shellcheck shell=bash
# What the scripts share: messages, packages, the cache, whether there is KVM. Sourced, never run.

# Debian keeps mke2fs, depmod and debugfs where an ordinary user's PATH does not look.
PATH=$PATH:/usr/sbin:/sbin
# shellcheck disable=SC2034 # for those who source this
cache=${BELLJAR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/belljar}

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 125; }

# have NAME: there is such a command, or a file if NAME begins with a slash.
have() { case $1 in /*) [ -e "$1" ] ;; *) command -v "$1" >/dev/null ;; esac; }

# need NAME=PACKAGE...: installs what is missing if we are root, otherwise says in one line what to install.
need() {
    local pair packages
    # Twice, because apt may remove one to install another: where qemu-utils is from backports, qemu-system-x86 from
    # the release itself replaces it.
    for _ in 1 2; do
        packages=()
        for pair; do
            have "${pair%%=*}" || packages+=("${pair#*=}")
        done
        [ ${#packages[@]} -gt 0 ] || return 0
        [ "$(id -u)" = 0 ] || die "missing programs: run: sudo apt-get install --no-install-recommends ${packages[*]}"
        say "installing ${packages[*]}"
        lists
        DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends "${packages[@]}" >&2 ||
            die "apt-get could not install ${packages[*]}"
        hash -r
    done
    for pair; do have "${pair%%=*}" || die "no ${pair%%=*} although ${pair#*=} is installed"; done
}

# lists: apt's package lists are there, or get fetched, or we say what to do.
lists() {
    if compgen -G '/var/lib/apt/lists/*Packages*' >/dev/null; then return 0; fi
    [ "$(id -u)" = 0 ] || die "apt has no package lists: run: sudo apt-get update"
    say "apt has no package lists: running apt-get update"
    apt-get update -qq >&2 || die "apt-get update failed"
}

# native: KVM runs ordinary guests on this host. The flags matter as much as the device: there are hosts whose /dev/kvm
# runs only paravirtualized guests.
native() { grep -qwE 'vmx|svm' /proc/cpuinfo && [ -r /dev/kvm ] && [ -w /dev/kvm ]; }

# shellcheck disable=SC2034 # for those who source this
bochs_programs=(bochs-bin=bochs /usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so=bochs-term xorriso=xorriso
    /usr/lib/ISOLINUX/isolinux.bin=isolinux /usr/lib/syslinux/modules/bios/ldlinux.c32=syslinux-common)
