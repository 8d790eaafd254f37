// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line: a contract with existing users.

use crate::rig::kernel_rules as rules;
use crate::rig::record::Kind;
use crate::rig::setup::{Finished, run};
use crate::rig::*;
use std::fs;

const DEVICE: &str = "--device=/dev/spidev0.0";
const USAGE: i32 = 64;

fn dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("vc").tempdir().unwrap()
}

/// Runs with a socket path of its own in front of `args`.
fn with_socket(host: &Host, args: &[&str]) -> Finished {
    let dir = dir();
    let path = format!("--socket-path={}", dir.path().join("s").display());
    let finished = run(host, &[&[path.as_str()], args].concat());
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        0,
        "a refused start leaves nothing behind"
    );
    finished
}

#[track_caller]
fn usage(args: &[&str], words: &[&str]) {
    let finished = with_socket(&Host::with_devices(1), args);
    assert_eq!(
        finished.refused(words),
        USAGE,
        "{args:?}: {}",
        finished.stderr
    );
    assert_eq!(finished.stdout, "", "{args:?}");
}

#[test]
fn cli_help_prints_all_options_and_exits_0() {
    for arg in ["-h", "--help"] {
        let finished = run(&Host::new(), &[arg]);
        assert_eq!(
            (finished.status.code(), finished.stderr.as_str()),
            (Some(0), ""),
            "{arg}"
        );
        for option in [
            "--socket-path",
            "--socket-count",
            "--socket=",
            "--fd=",
            "--socket-fd=",
            "--socket-mode",
            "--socket-group",
            "--print-capabilities",
            "--device",
            "--help",
            "--version",
            "--seccomp",
            "-s",
            "-c",
            "-l",
        ] {
            assert!(
                finished.stdout.contains(option),
                "{option} is not in {}",
                finished.stdout
            );
        }
    }
}

#[test]
fn cli_version_prints_one_line_and_exits_0() {
    for arg in ["-V", "--version"] {
        let finished = run(&Host::new(), &[arg]);
        assert_eq!(
            (finished.status.code(), finished.stderr.as_str()),
            (Some(0), ""),
            "{arg}"
        );
        assert!(
            finished
                .stdout
                .trim_end()
                .ends_with(env!("CARGO_PKG_VERSION")),
            "{}",
            finished.stdout
        );
        assert_eq!(finished.stdout.lines().count(), 1);
    }
}

/// QEMU's conventions: JSON on stdout, success, and whatever else is given is ignored.
#[test]
fn cli_print_capabilities_prints_json_whatever_else_is_given() {
    for args in [
        &["--print-capabilities"][..],
        &["--nonsense", "--print-capabilities", "--device"],
        &["--fd=3", "--socket-path=/nowhere/s", "--print-capabilities"],
    ] {
        let finished = run(&Host::new(), args);
        assert_eq!(
            (finished.status.code(), finished.stderr.as_str()),
            (Some(0), "")
        );
        let json: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
        assert_eq!(json, serde_json::json!({ "type": "spi" }));
    }
}

#[test]
fn cli_text_that_cannot_be_written_is_an_error_that_names_stdout() {
    for option in [
        "--help",
        "--version",
        "--print-syscalls",
        "--print-capabilities",
    ] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let no_room = move || {
            let fd = std::os::fd::AsRawFd::as_raw_fd(&full);
            sys::check(unsafe { libc::dup2(fd, 1) }.into()).map(drop)
        };
        let finished = setup::run_after(&Host::new(), &[option], no_room);
        assert_eq!(finished.refused(&["stdout"]), 74, "{option}");
    }
}

#[test]
fn cli_text_for_a_closed_stdout_is_an_error_and_for_dev_null_is_none() {
    let null = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap();
    let null = std::sync::Arc::new(null);
    for option in ["--help", "--print-capabilities"] {
        let close = || sys::check(unsafe { libc::close(1) }.into()).map(drop);
        let finished = setup::run_after(&Host::new(), &[option], close);
        assert_eq!(
            finished.refused(&["stdout", "bad file descriptor"]),
            74,
            "{option}"
        );
        let null = null.clone();
        let discard = move || {
            let fd = std::os::fd::AsRawFd::as_raw_fd(&*null);
            sys::check(unsafe { libc::dup2(fd, 1) }.into()).map(drop)
        };
        let finished = setup::run_after(&Host::new(), &[option], discard);
        assert_eq!(
            (finished.status.code(), finished.stderr.as_str()),
            (Some(0), "")
        );
    }
}

/// The example of a file for the folder where QEMU's management software looks for back-ends.
#[test]
fn cli_capabilities_and_the_example_for_qemu_agree() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/dist/README.md");
    let text = std::fs::read_to_string(path).unwrap();
    let example = text.split("```json\n").nth(1).unwrap();
    let example = example.split("```").next().unwrap();
    let json: serde_json::Value = serde_json::from_str(example).unwrap();
    let fields = json.as_object().unwrap();
    let mut names: Vec<_> = fields.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["binary", "description", "type"]);
    let printed = run(&Host::new(), &["--print-capabilities"]).stdout;
    let printed: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(fields["type"], printed["type"]);
    let binary = fields["binary"].as_str().unwrap();
    assert!(binary.starts_with('/') && binary.ends_with("/vhost-device-spi"));
}

#[test]
fn cli_every_spelling_of_an_option_is_taken() {
    let spellings: [fn(&str, usize) -> Vec<String>; 6] = [
        |s, c| {
            vec![
                format!("-s={s}"),
                format!("-c={c}"),
                "-l=/dev/spidev0.0".into(),
            ]
        },
        |s, c| {
            vec![
                format!("--socket-path={s}"),
                format!("--socket-count={c}"),
                "--device=/dev/spidev0.0".into(),
            ]
        },
        |s, c| {
            [
                "--socket-path",
                s,
                "--socket-count",
                &c.to_string(),
                "--device",
                "/dev/spidev0.0",
            ]
            .map(String::from)
            .into()
        },
        |s, c| {
            vec![
                format!("-s{s}"),
                format!("-c{c}"),
                "-l/dev/spidev0.0".into(),
            ]
        },
        |s, c| {
            ["-s", s, "-c", &c.to_string(), "-l", "/dev/spidev0.0"]
                .map(String::from)
                .into()
        },
        |s, c| {
            vec![
                "-l".into(),
                "/dev/spidev0.0".into(),
                format!("--socket-count={c}"),
                format!("-s{s}"),
            ]
        },
    ];
    for spelling in spellings {
        let host = Host::with_devices(1);
        let daemon = Setup::new(&host).guests(2).spelled(spelling).start();
        Guest::connect(&daemon, 1).assert_served();
        daemon.stop();
    }
}

#[test]
fn cli_socket_count_absent_is_1() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host)
        .spelled(|s, _| vec![format!("-s{s}")])
        .device("/dev/spidev0.0")
        .start();
    assert!(!daemon.socket(1).exists());
}

#[test]
fn cli_socket_path_relative_listens_in_the_working_directory_and_is_removed() {
    let host = Host::with_devices(1);
    let setup = Setup::new(&host)
        .spelled(|_, _| vec!["--socket-path=s".into()])
        .device("/dev/spidev0.0");
    let daemon = setup.launch();
    let path = daemon.socket(0);
    // Not `wait_listening`: the kernel's table shows the relative name, which is not this test's alone.
    assert!(sys::eventually(PATIENCE, || {
        std::os::unix::net::UnixStream::connect(&path).is_ok()
    }));
    Guest::connect(&daemon, 0).assert_served();
    daemon.stop();
    assert!(!path.exists());
}

#[test]
fn cli_socket_count_64_listens_on_all() {
    let host = Host::with_devices(1);
    let daemon = Setup::new(&host)
        .guests(64)
        .device("/dev/spidev0.0")
        .start();
    Guest::connect(&daemon, 63).assert_served();
    Guest::connect(&daemon, 0).assert_served();
    daemon.stop();
}

#[test]
fn cli_socket_count_out_of_range_or_junk_is_a_usage_error() {
    for count in [
        "0",
        "65",
        "-1",
        "x",
        "1x",
        " 1",
        "",
        "4294967297",
        "18446744073709551617",
        "1.0",
        "0x1",
    ] {
        usage(
            &[DEVICE, &format!("--socket-count={count}")],
            &["socket-count", count],
        );
    }
}

#[test]
fn cli_option_missing_is_a_usage_error_that_names_it() {
    let host = Host::with_devices(1);
    assert_eq!(run(&host, &[DEVICE]).refused(&["socket-path"]), USAGE);
    usage(&[], &["device"]);
    let nothing: [&str; 0] = [];
    assert_eq!(run(&host, &nothing).refused(&[]), USAGE);
}

#[test]
fn cli_option_unknown_is_a_usage_error_that_names_it() {
    for unknown in [
        "--nonsense",
        "--nonsense=1",
        "-x",
        "--socket",
        "--devices=/dev/spidev0.0",
        "word",
        "-",
    ] {
        usage(&[DEVICE, unknown], &[unknown.split('=').next().unwrap()]);
    }
}

#[test]
fn cli_option_without_value_is_a_usage_error_that_names_it() {
    for option in ["--device", "--socket-count", "--seccomp"] {
        usage(&[DEVICE, option], &[option]);
    }
    usage(&[DEVICE, "--device="], &["device"]);
    usage(&[DEVICE, "-l"], &["device"]);
    assert_eq!(
        run(&Host::with_devices(1), &[DEVICE, "--socket-path="]).refused(&["socket-path"]),
        USAGE
    );
}

#[test]
fn cli_seccomp_mode_unknown_is_a_usage_error() {
    for mode in ["", "off", "KILL", "kill,log"] {
        usage(&[DEVICE, &format!("--seccomp={mode}")], &["seccomp", mode]);
    }
}

#[test]
fn cli_seccomp_log_and_none_warn_and_serve() {
    for (mode, filter) in [("kill", "2"), ("log", "2"), ("none", "2")] {
        let host = Host::with_devices(1);
        let daemon = Setup::new(&host)
            .device("/dev/spidev0.0")
            .arg(format!("--seccomp={mode}"))
            .start();
        Guest::connect(&daemon, 0).assert_served();
        // The rig's own filter is there in every mode: the daemon's is the second.
        assert_eq!(daemon.status("Seccomp:"), filter);
        let expected = if mode == "none" { "1" } else { "2" };
        assert_eq!(daemon.status("Seccomp_filters:"), expected, "{mode}");
        daemon.wait_line(&["listening"]);
        if mode == "kill" {
            assert_eq!(daemon.said(), [""; 0]);
        } else {
            daemon.wait_line(&["seccomp"]);
        }
        daemon.stop();
    }
}

#[test]
fn cli_devices_17_is_a_usage_error() {
    let host = Host::with_devices(17);
    let devices: Vec<_> = (0..17)
        .map(|n| format!("--device=/dev/spidev0.{n}"))
        .collect();
    let args: Vec<_> = devices.iter().map(String::as_str).collect();
    assert_eq!(with_socket(&host, &args).refused(&["device", "16"]), USAGE);
    assert!(
        host.records().iter().all(|r| r.ret == 0 && r.edges == 0),
        "the bus is not touched for that"
    );
}

#[test]
fn cli_devices_16_become_chip_selects_in_order() {
    let host = Host::with_devices(16);
    let order: Vec<_> = (0..16).rev().map(|n| format!("/dev/spidev0.{n}")).collect();
    let daemon = Daemon::start(&host, &order.iter().map(String::as_str).collect::<Vec<_>>());
    let mut guest = Guest::connect(&daemon, 0);
    assert_eq!(guest.config().cs_max_number, 16);
    for n in 0..16u8 {
        guest.transfer(Head::default().chip_select(n), &[n], 0);
        assert_eq!(host.messages((0, 15 - u32::from(n)))[0].tx(), [n]);
    }
}

#[test]
fn cli_device_absent_is_refused_with_its_name_and_reason() {
    for (device, remedy) in [
        ("/dev/spidev9.9", "is the device bound to spidev?"),
        ("spidev9.9", "expected /dev/spidevX.Y or 'loopback'"),
    ] {
        let option = format!("--device={device}");
        let finished = with_socket(&Host::with_devices(1), &[&option]);
        let start = format!("option '--device': '{device}': No such file");
        assert_eq!(finished.refused(&[&start, remedy]), 66);
    }
}

#[test]
fn cli_device_that_is_no_spidev_is_refused_with_its_name() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for path in [
        "/dev/null",
        "/dev/zero",
        file.path().to_str().unwrap(),
        "/dev",
    ] {
        with_socket(&Host::with_devices(1), &[&format!("--device={path}")]).refused(&[path]);
    }
}

#[test]
fn cli_device_that_cannot_be_opened_is_refused_with_the_reason() {
    for (errno, reason) in [
        (libc::ENXIO, "no such device"),
        (libc::EACCES, "must be able to read and write it"),
        (libc::EBUSY, "busy"),
    ] {
        let host = Host::with_devices(1);
        host.fail_open(DEV, errno);
        with_socket(&host, &[DEVICE]).refused(&["/dev/spidev0.0", reason]);
    }
}

#[test]
fn cli_device_that_is_unplugged_at_start_is_refused() {
    let host = Host::with_devices(1);
    host.fail_ioctls(DEV, libc::ESHUTDOWN);
    with_socket(&host, &[DEVICE]).refused(&["/dev/spidev0.0", "shutdown"]);
}

#[test]
fn cli_device_that_fails_when_its_word_sizes_are_tried_is_refused() {
    let host = Host::with_devices(1);
    host.fail_request(DEV, rules::WR_BITS_PER_WORD, libc::EIO);
    let code = with_socket(&host, &[DEVICE]).refused(&["/dev/spidev0.0", "os error 5"]);
    assert_eq!(code, 66);
    // What is not supported is not what fails.
    host.fail_request(DEV, rules::WR_BITS_PER_WORD, libc::EINVAL);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    let config = Guest::connect(&daemon, 0).config();
    assert_eq!(config.bits_per_word_mask, 1 << 7);
}

#[test]
fn cli_device_that_another_daemon_holds_is_refused_and_left_alone() {
    let host = Host::with_devices(2);
    let daemon = Daemon::start(&host, &["/dev/spidev0.0"]);
    host.forget();
    let words = ["/dev/spidev0.0", "in use by another process"];
    let code = with_socket(&host, &["--device=/dev/spidev0.1", DEVICE]).refused(&words);
    assert_eq!(code, 69);
    let touched = host.records().into_iter().filter(|r| r.device == DEV);
    let reading = |kind: Kind| matches!(kind, Kind::Open | Kind::Read(_));
    assert!(
        touched.into_iter().all(|r| reading(r.kind)),
        "a device that is in use is at most asked"
    );
    Guest::connect(&daemon, 0).assert_served();
}

#[test]
fn cli_device_through_a_symlink_is_served() {
    let host = Host::with_devices(1);
    let dir = dir();
    let link = dir.path().join("sensor");
    std::os::unix::fs::symlink("/dev/spidev0.0", &link).unwrap();
    let daemon = Daemon::start(&host, &[link.to_str().unwrap()]);
    Guest::connect(&daemon, 0).assert_served();
}

#[test]
fn cli_device_given_twice_by_a_symlink_is_refused_as_that() {
    let dir = dir();
    let link = dir.path().join("sensor");
    std::os::unix::fs::symlink("/dev/spidev0.1", &link).unwrap();
    let finished = with_socket(
        &Host::with_devices(2),
        &[
            DEVICE,
            "--device=/dev/spidev0.1",
            &format!("-l{}", link.display()),
        ],
    );
    let words = [link.to_str().unwrap(), "same device as", "'/dev/spidev0.1'"];
    assert_eq!(finished.refused(&words), USAGE, "{}", finished.stderr);
}

#[test]
fn cli_device_slower_than_a_word_in_100_ms_is_refused() {
    // 8 bits in 100 ms are 80 Hz, 32 bits 320.
    for (bits, slow, enough) in [(8, 79, 80), (32, 319, 320)] {
        let host = || {
            let host = Host::new().controller(0, |c| c.bits_per_word_mask = 1 << (bits - 1));
            host.device(DEV, 1_000_000, Loopback)
        };
        let device = format!("--device=/dev/spidev0.0,max-speed-hz={slow}");
        let word = format!("{bits} bits");
        let words = ["/dev/spidev0.0", &format!("{slow} Hz"), &word, "100 ms"];
        assert_eq!(with_socket(&host(), &[&device]).refused(&words), 78);
        let device = format!("/dev/spidev0.0,max-speed-hz={enough}");
        let daemon = Daemon::start(&host(), &[&device]);
        let mut guest = Guest::connect(&daemon, 0);
        let head = Head::default().bits(bits).freq(0);
        assert_eq!(
            guest.transfer(head, &[1; 4][..bits as usize / 8], 0).result,
            TRANS_OK
        );
    }
}

#[test]
fn cli_device_second_of_two_bad_releases_the_first() {
    let host = Host::with_devices(1);
    with_socket(&host, &[DEVICE, "--device=/dev/spidev9.9"]).refused(&["/dev/spidev9.9"]);
    assert!(!host.selected(DEV));
    Daemon::start(&host, &["/dev/spidev0.0"]).stop();
}

#[test]
fn cli_bufsiz_that_holds_no_transfer_is_refused() {
    let host = Host::with_devices(1).bufsiz(7);
    let words = ["spidev.bufsiz", "7 bytes"];
    assert_eq!(with_socket(&host, &[DEVICE]).refused(&words), 78);
}
