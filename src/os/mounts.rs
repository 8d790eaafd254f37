// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which of the host's file systems close a file without waiting for another program or host.
//!
//! Closing a file of a FUSE server or of a network file system waits for an answer that may never
//! come, and asking such a file for its type can wait as well. The one thing that every file tells
//! without waiting is the number of its file system (`statx`). The table of the host's mounts, which stays
//! open, has the type for that number; file systems whose type is known to close at once are trusted.
//!
//! While a file is open its file system keeps its number, and no other has it. The files of a btrfs
//! subvolume have a number that is not in the table. It is found at start, since nothing can be opened
//! later, and is trusted while the mount is still there: after that, a FUSE server may have the number.

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

/// Of a mount: its number in the table, and that of its file system.
type Mount = (u32, DeviceNumber);

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
            mount: (id, (major.parse().ok()?, minor.parse().ok()?)),
            kind: fields.next()?,
            mount_point,
        })
    }
}

/// The host's mounts.
#[derive(Debug, Default)]
pub struct Mounts {
    table: Option<File>,
    /// Of each btrfs subvolume that was mounted at start: the number that its files have, and its mount.
    subvolumes: Vec<(DeviceNumber, Mount)>,
    /// Those that were mounted at start.
    fuse_on_disk: Vec<DeviceNumber>,
}

impl Mounts {
    /// Reads the table. Without one, file systems with a block device are trusted, and no others.
    pub fn read() -> Self {
        let table = File::open(TABLE).ok();
        table.map_or_else(Self::default, |table| Self::of_table(table, of_subvolume))
    }

    /// `of_files` finds the number that the files of a btrfs subvolume have: each has one of its own.
    fn of_table(table: File, of_files: impl Fn(&str) -> Option<DeviceNumber>) -> Self {
        let (mut subvolumes, mut fuse_on_disk) = (Vec::new(), Vec::new());
        any_line(&table, &mut |line| {
            match line.kind {
                FUSE_ON_DISK => fuse_on_disk.push(line.mount.1),
                "btrfs" => {
                    let number = of_files(line.mount_point);
                    subvolumes.extend(number.map(|number| (number, line.mount)));
                }
                _ => (),
            }
            false
        });
        // Files with the number of a mount are of something else, which is mounted on top.
        subvolumes.retain(|(number, _)| !any_line(&table, &mut |line| line.mount.1 == *number));
        Self {
            table: Some(table),
            subvolumes,
            fuse_on_disk,
        }
    }

    /// Whether a file of the file system with this number closes without waiting for somebody.
    pub fn close_at_once(&self, device: DeviceNumber) -> bool {
        if device.0 != 0 {
            return !self.fuse_on_disk.contains(&device);
        }
        let is_its = &mut |line: Line<'_>| {
            let is_subvolume = self.subvolumes.contains(&(device, line.mount));
            TRUSTED.contains(&line.kind) && (line.mount.1 == device || is_subvolume)
        };
        self.table
            .as_ref()
            .is_some_and(|table| any_line(table, is_its))
    }
}

/// Whether `is_it` says so of a line of the table.
#[inline(never)]
fn any_line(table: &File, is_it: &mut dyn FnMut(Line<'_>) -> bool) -> bool {
    let (mut chunk, mut offset) = ([0; CHUNK_LEN], 0u64);
    while let Ok(len @ 1..) = table.read_at(&mut chunk, offset) {
        let text = String::from_utf8_lossy(chunk.get(..len).unwrap_or_default());
        if text.lines().filter_map(Line::parse).any(&mut *is_it) {
            return true;
        }
        offset = offset.saturating_add(u64::try_from(len).unwrap_or(0));
    }
    false
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

    fn file(text: &str) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(text.as_bytes(), 0).unwrap();
        file
    }

    #[test]
    fn mounts_are_trusted_by_their_type() {
        let mounts = Mounts::of_table(file(TEXT), |path| match path {
            "/home" => Some((0, 99)),
            "/hidden" => Some((0, 27)),
            _ => None,
        });
        let trusted = (0..100).filter(|minor| mounts.close_at_once((0, *minor)));
        assert_eq!(trusted.collect::<Vec<_>>(), [21, 22, 23, 26, 28, 99]);
        assert!(mounts.close_at_once((8, 1)) && mounts.close_at_once((259, 0)));
        assert!(!mounts.close_at_once((8, 17)));
    }

    #[test]
    fn mount_that_is_gone_is_not_trusted_any_more() {
        // Its line stands after the first chunk.
        let lines = "40 22 0:40 / /x rw - proc proc rw\n".repeat(200) + TEXT;
        let file = file(&lines);
        let of_home = |path: &str| (path == "/home").then_some((0, 99));
        let mounts = Mounts::of_table(file.try_clone().unwrap(), of_home);
        assert!([21, 23, 99].map(|minor| mounts.close_at_once((0, minor))) == [true; 3]);
        assert!(!mounts.close_at_once((0, 24)) && !mounts.close_at_once((0, 25)));
        let replace = |old, new| {
            file.set_len(0).unwrap();
            let later = lines.replace(old, new);
            file.write_all_at(later.as_bytes(), 0).unwrap();
        };
        // A FUSE server has its number now.
        replace("- zfs tank", "- fuse tank");
        assert!(!mounts.close_at_once((0, 23)) && mounts.close_at_once((0, 99)));
        // The number of a subvolume's files was free for others when its mount was gone.
        for (old, new) in [("23 22 0:22 ", "77 22 0:22 "), ("- btrfs", "- fuse")] {
            replace(old, new);
            assert!(!mounts.close_at_once((0, 99)));
        }
        replace(TEXT, "");
        assert!(!mounts.close_at_once((0, 21)));
    }
}
