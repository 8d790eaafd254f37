# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# For Yocto 6.0 (wrynose), whose Rust is 1.94, or newer. Rust of 5.0 (scarthgap) is 1.75, which is too old.
SUMMARY = "vhost-user back-end of the VIRTIO SPI controller"
DESCRIPTION = "Gives virtual machines the SPI devices of their host."
SECTION = "console/utils"
LICENSE = "Apache-2.0 | BSD-3-Clause"
LIC_FILES_CHKSUM = "\
    file://LICENSE-APACHE;md5=3b83ef96387f14655fc854ddc3c6bd57 \
    file://LICENSE-BSD-3-Clause;md5=7653385189906b042d2e2e20f5828358 \
"

# The release with this version, by its tag in the repository that this recipe is in. In a layer of yours, put the address
# of a repository in place of file://, and the commit of the tag (git rev-parse v0.2.0^{commit}) in SRCREV as well: BitBake
# then checks that both agree, and needs no network to look the tag up. The crates are those of Cargo.lock; `bitbake -c
# update_crates` would add those of the benchmark and the fuzz targets, dist/generate does not.
SRC_URI = "git://${@os.path.dirname(d.getVar('THISDIR'))};protocol=file;nobranch=1;tag=v${PV}"
require vhost-device-spi-crates.inc

inherit cargo systemd useradd

# What is stripped here has no symbols left for the -dbg package.
export CARGO_PROFILE_RELEASE_STRIP = "false"

do_install() {
    ${S}/dist/install DESTDIR=${D} PREFIX=${prefix} BINARY=${B}/target/${CARGO_TARGET_SUBDIR}/vhost-device-spi
}

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system spi"
# For all devices in one daemon, or vhost-device-spi@0.0.socket for one.
SYSTEMD_SERVICE:${PN} = "vhost-device-spi.socket vhost-device-spi.service"
SYSTEMD_AUTO_ENABLE = "disable"
FILES:${PN} += "\
    ${nonarch_libdir}/sysusers.d \
    ${nonarch_libdir}/udev/rules.d \
    ${systemd_system_unitdir} \
    ${datadir}/licenses \
"
