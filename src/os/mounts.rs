// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which of the host's file systems close a file without waiting for another program or host.
//!
//! Closing a file of a FUSE server or of a network file system waits for an answer that may never
//! come, and asking such a file for its type can wait as well. The one thing that every file tells
//! without waiting is the number of its file system (`statx`). So the mounts of the host are read once, at
//! start, and file systems whose type is known to close at once are trusted by that number.
//!
//! The kernel gives the number of a file system that is gone to the next one, which may be a FUSE
//! server's. So a number is trusted only while its mount is still there, for which the table of
//! mounts stays open. While a file is open its file system keeps its number, and no other has it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

const TABLE: &str = "/proc/self/mountinfo";

/// Types without a block device whose files close without waiting.
const TRUSTED: [&str; 5] = ["bcachefs", "btrfs", "overlay", "ramfs", "zfs"];
/// The one type with a block device whose files may wait.
const FUSE_ON_DISK: &str = "fuseblk";
/// Bytes read at once; the kernel gives as many whole lines as fit.
const CHUNK_LEN: usize = 4096;

/// Major and minor number of a file system.
pub type DeviceNumber = (u32, u32);

/// A mount, as the table has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mount {
    id: u32,
    /// That of its file system.
    number: DeviceNumber,
}

/// A line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line<'a> {
    mount: Mount,
    kind: &'a str,
    mount_point: &'a str,
}

impl<'a> Line<'a> {
    /// `ID PARENT MAJOR:MINOR ROOT MOUNT_POINT OPTIONS [TAG]... - TYPE ...`, see `proc(5)`.
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(' ');
        let id = fields.next()?.parse().ok()?;
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        let mount_point = fields.nth(1)?;
        fields.find(|field| *field == "-")?;
        Some(Self {
            mount: Mount {
                id,
                number: (major.parse().ok()?, minor.parse().ok()?),
            },
            kind: fields.next()?,
            mount_point,
        })
    }
}

/// The host's mounts, as they were at start.
#[derive(Debug, Default)]
pub struct Mounts {
    table: Option<File>,
    /// Those that are trusted, by the number that their files have.
    trusted: Vec<(DeviceNumber, Mount)>,
    fuse_on_disk: Vec<DeviceNumber>,
}

impl Mounts {
    /// Reads the table. Without one, file systems with a block device are trusted, and no others.
    pub fn read() -> Self {
        let bytes = fs::read(TABLE).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        Self {
            table: File::open(TABLE).ok(),
            ..Self::of_table(&text, of_subvolume)
        }
    }

    /// `of_files` finds the number that the files of a btrfs subvolume have: each has one of its own.
    fn of_table(text: &str, of_files: impl Fn(&str) -> Option<DeviceNumber>) -> Self {
        let lines: Vec<Line<'_>> = text.lines().filter_map(Line::parse).collect();
        let trusted = lines.iter().filter(|line| TRUSTED.contains(&line.kind));
        let trusted = trusted.filter_map(|line| {
            let mut number = line.mount.number;
            if line.kind == "btrfs" {
                number = of_files(line.mount_point)?;
                // Something else is mounted on top of it.
                if lines.iter().any(|other| other.mount.number == number) {
                    return None;
                }
            }
            Some((number, line.mount))
        });
        let on_disk = lines.iter().filter(|line| line.kind == FUSE_ON_DISK);
        Self {
            table: None,
            trusted: trusted.collect(),
            fuse_on_disk: on_disk.map(|line| line.mount.number).collect(),
        }
    }

    /// Whether a file of the file system with this number closes without waiting for somebody.
    pub fn close_at_once(&self, device: DeviceNumber) -> bool {
        if device.0 != 0 {
            return !self.fuse_on_disk.contains(&device);
        }
        let mut known = self.trusted.iter().filter(|(number, _)| *number == device);
        known.any(|(_, mount)| self.is_there(*mount))
    }

    /// Whether a mount is still in the table.
    fn is_there(&self, mount: Mount) -> bool {
        let is_it = |line: Line<'_>| line.mount == mount && TRUSTED.contains(&line.kind);
        let Some(table) = &self.table else {
            return false;
        };
        let (mut chunk, mut offset) = ([0; CHUNK_LEN], 0u64);
        while let Ok(len @ 1..) = table.read_at(&mut chunk, offset) {
            let text = String::from_utf8_lossy(chunk.get(..len).unwrap_or_default());
            if text.lines().filter_map(Line::parse).any(is_it) {
                return true;
            }
            offset = offset.saturating_add(u64::try_from(len).unwrap_or(0));
        }
        false
    }
}

/// The number of the files at `mount_point`; none where the table had to escape a character of it.
fn of_subvolume(mount_point: &str) -> Option<DeviceNumber> {
    let number = fs::metadata(mount_point).ok()?.dev();
    Some((libc::major(number), libc::minor(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_subvolume_is_the_number_of_the_files_there() {
        let dev = fs::metadata("/").unwrap().dev();
        let number = (libc::major(dev), libc::minor(dev));
        assert_eq!(of_subvolume("/"), Some(number));
        assert_eq!(of_subvolume("/a\\040b"), None);
    }

    const TEXT: &str = "\
22 1 0:21 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/l,upperdir=/u
23 22 0:22 /@home /home rw - btrfs /dev/sda2 rw,subvol=/@home
24 22 0:23 / /tank rw master:2 propagate_from:3 - zfs tank rw
25 22 8:1 / /boot rw - ext4 /dev/sda1 rw
26 22 8:17 / /media/usb rw - fuseblk /dev/sdb1 rw
27 22 0:24 / /home/a/remote rw - fuse.sshfs a@b: rw
28 22 0:25 / /net rw - nfs4 server:/ rw
29 22 0:26 /@var /hidden rw - btrfs /dev/sda2 rw,subvol=/@var
30 29 0:27 / /hidden rw - fuse.x x rw
31 22 0:28 / /with\\040blank rw - btrfs /dev/sda3 rw
";

    #[test]
    fn mounts_are_trusted_by_their_type() {
        let mounts = Mounts::of_table(TEXT, |path| match path {
            "/home" => Some((0, 99)),
            "/hidden" => Some((0, 27)),
            _ => None,
        });
        let trusted: Vec<_> = mounts.trusted.iter().map(|(number, _)| *number).collect();
        assert_eq!(trusted, [(0, 21), (0, 99), (0, 23)]);
        assert!(mounts.close_at_once((8, 1)) && mounts.close_at_once((259, 0)));
        assert!(!mounts.close_at_once((8, 17)));
    }

    #[test]
    fn mount_that_is_gone_is_not_trusted_any_more() {
        let file = tempfile::tempfile().unwrap();
        // Its line stands after the first chunk.
        let lines = "40 22 0:40 / /x rw - proc proc rw\n".repeat(200) + TEXT;
        file.write_all_at(lines.as_bytes(), 0).unwrap();
        let mounts = Mounts {
            table: Some(file.try_clone().unwrap()),
            ..Mounts::of_table(TEXT, |_| None)
        };
        assert!(mounts.close_at_once((0, 21)) && mounts.close_at_once((0, 23)));
        assert!(!mounts.close_at_once((0, 24)) && !mounts.close_at_once((0, 25)));
        // Another mount has its number now.
        let later = lines.replace("22 1 0:21 / / ", "77 1 0:21 / / ");
        file.write_all_at(later.as_bytes(), 0).unwrap();
        assert!(!mounts.close_at_once((0, 21)));
        let later = lines.replace("- zfs tank", "- fuse tank");
        file.set_len(0).unwrap();
        file.write_all_at(later.as_bytes(), 0).unwrap();
        assert!(!mounts.close_at_once((0, 23)));
    }
}
