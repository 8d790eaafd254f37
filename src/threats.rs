// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The threat model: what is at stake, who is trusted with what, what was tried against it, and
//! what is not defended.
//!
//! # Assets
//!
//! | asset | what it is | damage |
//! |---|---|---|
//! | chips | the devices on the bus, and what is sent to them | a command that nobody gave, or a part of one |
//! | data | another guest's memory, requests and answers | read, changed, lost or reported wrongly |
//! | time | the time that another guest's requests take | above the bound below |
//! | daemon | that it runs | no guest is served; a chip may stay selected until it is started again |
//! | host | its files, programs, log and memory | reached or used up |
//!
//! The order is that of importance: a chip that receives a wrong command is worse than a guest that waits.
//!
//! In the tables below the treatment is *avoided* where the damage cannot come about, *reduced* where it is
//! bounded (how long others wait, how many files stay open), *shared* where the administrator decides and
//! *retained* where nothing is done. Those who integrate the daemon rate the feasibility: it depends on who
//! may run code in a guest or a VMM.
//!
//! # Who is trusted with what
//!
//! | who | is trusted with | and not with |
//! |---|---|---|
//! | administrator (command line, devices, who may connect), service manager (sockets and variables that it hands in) | everything | typing without mistakes |
//! | host kernel | everything | - |
//! | front-end (VMM) | its guest's memory and devices | the daemon's time, fds and memory; other guests; the host |
//! | guest driver | the devices of its guest, within their limits | anything else, its front-end included |
//! | other programs of the host | nothing: they cannot connect (mode 0600, unless the administrator says otherwise) | - |
//!
//! # Attacks by a front-end
//!
//! | attack | asset | damage | treatment | defence | shown by |
//! |---|---|---|---|---|---|
//! | half a message and silence; a body that never comes; a byte at a time | time | no guest is served | avoided | `reader` receives without waiting, and hands whole messages on; after a second of silence within one the connection ends | `session_silent_in_the_middle_of_a_message_is_dropped_after_a_second`, `session_that_sends_a_message_byte_by_byte_is_served`, `message_in_two_parts_does_not_count_against_the_time_between_messages`, `receive_byte_by_byte_is_whole_at_the_last` |
//! | an urgent byte, with or without fds | time | the loop waits for a file's owner | avoided | it is received as a byte like any other, and its fds with it | `receive_urgent_byte_is_one_of_the_stream_and_keeps_its_fd`, `urgent_byte_in_place_of_a_body_does_not_hold_up_other_guests`, `urgent_byte_with_an_fd_in_front_of_a_message_does_not_hold_up_other_guests`, `urgent_byte_with_an_fd_between_header_and_body_does_not_hold_up_other_guests` |
//! | replies that are not read, or not yet | time | the loop waits for a reader | avoided | a reply is sent as the front-end takes it, and until then none of its messages is received | `replies_100_unread_ones_are_all_sent_however_little_room_there_is`, `replies_never_read_hold_up_nobody_else_and_end_with_their_front_end`, `reply_is_sent_as_the_front_end_takes_it` |
//! | sizes beyond 4,096, unknown or reply-flagged messages, wrong versions | daemon | memory is read or written out of bounds | avoided | `message` allows what is listed; anything else is refused, by an answer if one was asked for, and ends the connection | `message_unknown_or_malformed_ends_that_session_only`, `message_unknown_or_malformed_is_refused_by_an_answer_where_one_is_asked_for`, `header_that_is_not_allowed_is_refused` |
//! | messages without end | time | a transfer does not end | reduced | 16 a turn, then others and the transfer on the way have theirs | `messages_in_a_flood_do_not_keep_a_transfer_from_ending`, `transfer_goes_on_while_two_front_ends_flood_messages_in_turn` |
//! | fds of the wrong kind, too many, or with any byte of a message | daemon | fds are used up, or used as what they are not | avoided | there is room for all that the kernel can hand out at once; each is classified when it comes, and its close is deferred; none reaches the `vhost` crate | `receive_takes_as_many_fds_as_a_message_can_carry`, `receive_32_fds_are_taken_and_33_are_too_many`, `receive_fds_with_whatever_byte_of_the_message`, `receive_fds_of_many_bytes_are_too_many_at_33`, `fds_32_with_a_table_are_taken_and_33_are_refused`, `fds_of_the_wrong_kind_end_that_connection_and_are_not_kept`, `message_with_fds_that_it_must_not_have_is_refused`, `fds_with_the_body_do_not_hold_up_other_guests`, `fds_of_a_message_that_waits_for_the_transfer_are_not_gathered` |
//! | files whose every close waits for their owner (FUSE, network file systems) | time | the loop waits for a file's owner | reduced | told by the types of the host's mounts; such a file is left open, and after 16 (a single message can bring 253) the socket listens no more, where one a day is forgotten; what closes at once (memory, block devices, overlay, btrfs and the like, a mere path) is refused and closed | `memory_in_a_plain_file_is_refused_and_its_socket_serves_on`, `mount_that_is_gone_is_not_trusted_any_more`, `offences_of_17_files_within_a_day_end_the_socket`, `fds_as_many_as_a_message_can_carry_of_unknown_file_systems_end_that_socket_alone`, `fds_of_unknown_file_systems_are_left_open_and_end_that_socket_after_a_few`, `memory_that_is_an_o_path_fd_is_refused_and_not_left_open` |
//! | files whose last close takes long or for ever: a dead guest's memory, a pipe whose lock is held, a lingering socket, an eventfd that a locked epoll set watches, any of them in flight or in the backlog | time | the loop waits for a close | avoided | `deferred_close`: the kernel makes the last close in a worker of its own | `garbage_is_closed_by_the_kernel`, `kick_watched_by_a_locked_epoll_set_does_not_hold_up_other_guests`, `backlog_at_the_end_does_not_keep_the_bus_and_the_sockets`, `memory_of_a_front_end_that_is_gone_is_freed` |
//! | files of a FUSE server that does not answer, sockets that are locked | time | the loop waits for a file's owner | avoided | asked nothing that waits: `file_kind` | `directory_of_a_silent_file_server_does_not_hold_up_other_guests`, `call_whose_socket_is_locked_does_not_hold_up_other_guests` |
//! | so many files of the daemon's user in flight that the kernel takes no more | time | fds stay open | reduced | they stay open until it does; a guest that leaves too many waits | `fds_in_flight_of_the_daemons_user_do_not_hold_up_other_guests`, `fds_that_the_kernel_does_not_take_make_their_guest_wait_and_nobody_else` |
//! | a call eventfd that is full and blocks | time | the loop waits for a write | reduced | `write_timeout` interrupts the write; the connection ends and its socket does not listen for a while, each time within an hour twice as long | `offences_of_blocked_eventfds_rest_twice_as_long_and_are_forgotten_in_an_hour`, `call_eventfd_full_and_blocking_does_not_hold_up_other_guests`, `eventfd_beyond_its_end_does_not_hold_up_other_guests`, `err_eventfd_full_and_blocking_ends_the_session_and_is_named` |
//! | its own connection as call | time | the daemon signals itself without end | avoided | only eventfds and ends of socketpairs are taken | `connection_given_as_its_own_call_is_refused` |
//! | memory that shrinks at any moment | daemon | it ends by SIGBUS | avoided | `sigbus` puts other memory in its place, and the session ends | `access_to_a_truncated_mapping_that_cannot_be_cut_there_replaces_more_of_it`, `guest_whose_memory_file_shrinks_ends_alone`, `guest_whose_memory_file_shrinks_ends_alone_with_all_signals_blocked_before` |
//! | memory in any file, where `--guest-memory=any` allows it | daemon | it ends by SIGBUS | avoided | a file is mapped if it came with a message about memory; offset, length and alignment are checked where it has a length; one that shrinks ends its guest alone; for what comes with other messages nothing changes. See "Not defended" | `guest_memory_any_is_checked_where_the_file_says_its_length`, `guest_memory_any_in_a_file_that_shrinks_ends_its_guest_alone`, `guest_memory_any_that_cannot_be_mapped_is_refused_and_closed`, `guest_memory_any_leaves_open_what_is_not_memory_and_may_wait_when_closed` |
//! | all of the process's address space | daemon | no other guest can map its memory | avoided | each guest has its share of half of it | `mem_regions_may_have_a_guests_share_of_the_address_space_and_no_more`, `max_len_of_all_guests_is_at_most_half_of_the_address_space` |
//! | memory that is no memory, sealed, overlapping, wrapping or in part of a huge page | daemon | it ends by SIGBUS, or waits | avoided | `memory` refuses what could later fault, stall or alias | `add_sealed_file_is_taken_unless_it_cannot_be_written`, `add_malformed_regions_are_refused`, `mem_regions_overlapping_or_beyond_their_file_are_refused`, `memory_of_part_of_a_huge_page_is_refused` |
//! | rings unaligned, outside of memory, of any size | daemon | memory is read or written out of bounds | avoided | checked when they are set and again when the ring starts: the message that would start it is refused | `vring_part_that_ends_outside_memory_is_refused_signalled_and_named`, `vring_addresses_outside_memory_or_unaligned_end_at_most_the_session`, `vring_sizes_up_to_1024_are_taken_and_others_refused` |
//! | leaving in the middle of a transfer, or a thousand times | chips | a chip stays selected | avoided | everything of a connection ends with it, chip select first | `session_left_in_the_middle_of_a_long_transfer_releases_chip_select_and_serves_the_next`, `session_reconnected_1000_times_leaves_fds_and_memory_equal` |
//! | all fds of the process | time | no other front-end can connect | reduced | each guest's are bounded; short of that, the socket stops listening for 100 ms and tries again; too few for one guest are refused at start | `start_with_too_few_fds_for_a_guest_is_refused_and_the_number_it_names_suffices`, `fds_may_be_as_many_as_the_host_allows`, `socket_without_an_fd_for_a_connection_listens_again_when_there_is_one` |
//! | all of the above at random, by half of 16 guests, while the others check each answer | chips, data, time | any of the above | reduced | - | `soak_leaves_the_daemon_as_it_was_and_every_request_answered_by_what_came_of_it` |
//!
//! # Attacks by a guest driver
//!
//! | attack | asset | damage | treatment | defence | shown by |
//! |---|---|---|---|---|---|
//! | an avail index that jumps, heads beyond the ring | daemon | chains that nobody made are served | avoided | the ring is broken: it stops, and its err fd is signalled | `vring_index_that_jumps_stops_the_ring_signals_err_and_is_logged`, `pending_beyond_the_size_breaks_the_ring`, `peek_of_a_head_beyond_the_table_breaks_the_ring` |
//! | descriptors that loop, wrap, point outside, nest, or were not negotiated | daemon | memory is read out of bounds, or without end | avoided | each is read once, at most 1,024 of them; a malformed chain is completed with length 0 | `indirect_table_of_1024_is_a_whole_chain`, `walk_of_a_loop_is_broken`, `walk_of_a_table_outside_memory_is_broken`, `walk_of_an_indirect_table_in_a_table_is_broken`, `chain_of_indirect_beside_next_is_used_with_length_0`, `chain_in_an_indirect_table_that_was_not_negotiated_is_used_with_length_0`, `chain_of_1025_buffers_most_of_them_empty_is_used_with_length_0`, `request_with_readable_after_writable_is_not_carried_out` |
//! | bytes that change while they are read | chips | another command is sent than was checked | avoided | head and descriptors are copied once; payload is the guest's own affair | `request_payload_pointers_are_the_guests_memory` |
//! | requests of gigabytes or years | time | others wait for as long | reduced | refused above `--max-transfer-len` and `--max-transfer-ms`, no memory is taken for them; one ioctl is at most `--max-message-ms` on the wire | `time_of_each_message_at_a_low_speed_is_at_most_100_ms`, `time_of_one_word_above_100_ms_is_param_err`, `time_of_each_message_is_at_most_what_is_set` |
//! | a flood of requests, valid or not | time | others are not served; the log fills | reduced | one request a turn, nobody is passed twice; log lines are limited and counted | `turns_of_three_flooding_guests_are_taken_request_by_request`, `log_of_a_guest_that_floods_is_ten_lines_in_ten_seconds_and_the_rest_is_counted`, `inactive_delays_in_a_flood_delay_another_guest_by_one_request` |
//! | chip select held for ever | time | others are not served | reduced | a hold that no request continues ends after `--cs-hold-timeout-ms`; while others wait, no request continues one older than `--max-transfer-ms`; other devices of the bus are never selected beside it | `guest_that_waits_for_the_bus_keeps_its_place_before_later_ones` |
//! | a polarity that selects the device against everyone | chips | two chips hear one command | avoided | refused unless the administrator allows it | `head_cs_high_on_an_active_low_device_is_param_err` |
//! | a command that a guest of `read-only=` may not send, also in words, bit orders, modes or lanes in which the chip would see it in another opcode, or written over one after the check | chips | a forbidden command is carried out | avoided | the opcode is copied, checked and sent from the copy; what changes its bits is refused | `rule_read_only_leaves_the_chip_as_it_is_whatever_its_guest_sends`, `opcode_that_changes_in_memory_after_it_was_judged_is_sent_as_judged`, `opcode_on_several_lanes_is_refused_where_a_rule_applies`, `chip_is_spoken_to_in_bytes_highest_bit_first_in_mode_0_or_3` |
//! | a command of a chip that stops half-way, so that what follows would be taken for its data, or its data for a command | chips | data is carried out as a command | avoided | it ends with a request that is refused or fails, and after `--cs-hold-timeout-ms`; then the request that would have continued it is `TRANS_ERR` | `chip_command_that_stops_half_way_ends_after_the_time_out_and_costs_one_request`, `chip_command_of_which_a_request_is_refused_ends_there`, `chip_command_that_fails_on_the_wire_ends_there` |
//!
//! # The surroundings
//!
//! | what | asset | damage | treatment | defence | shown by |
//! |---|---|---|---|---|---|
//! | stderr full, closed, a stopped terminal, a file that may not grow | time | the loop waits for a reader | avoided | a line is written whole if there is room for it, or not at all; a file that ends takes what still fits | `process_stderr_full_broken_or_closed_neither_blocks_nor_ends_it`, `stderr_file_as_long_as_files_may_be_takes_no_more_and_the_daemon_serves` |
//! | counters asked for at any moment, of 1,024 chip selects, with stderr full | time | the loop waits for a reader | avoided | one line a turn of the loop; one that finds no room is tried again for a second | `counters_asked_for_in_a_long_transfer_do_not_change_it`, `counters_asked_for_with_stderr_full_broken_or_closed_neither_block_nor_spin`, `counters_of_64_guests_and_16_chip_selects_are_all_written_when_they_are_read_late` |
//! | text in a log line that looks like a field or a line of its own | host | the log says what did not happen | avoided | no control characters, and no quotes within quotes | `quoted_text_cannot_end_its_field` |
//! | a signal in the middle of a transfer | chips | a chip stays selected | avoided | it ends in order: chip select released, modes restored, sockets removed | `process_told_to_end_does_not_finish_a_long_transfer_and_releases_chip_select` |
//! | stopped and continued, frozen; few fds | data | a request is lost | avoided | system calls that are begun again are allowed; see above | `process_stopped_and_continued_in_traffic_loses_nothing`, `process_with_64_fds_serves_its_guests_while_one_takes_all` |
//! | fds that were left open by accident | host | a file or socket of the host is reached | avoided | all but those handed in are closed, before anything is opened | `fds_inherited_are_all_closed`, `fds_inherited_are_closed_but_for_those_handed_in` |
//! | an fd handed in that is another than was meant; variables meant for another process | host | a file or socket of the host is reached | avoided | each is looked at before anything is opened, so that no fd of ours is taken for it; `LISTEN_PID` and `WATCHDOG_PID` must be ours | `handed_in_fd_of_no_use_is_refused_with_option_value_and_cause`, `activation_of_another_process_is_ignored`, `handed_in_socket_whose_messages_would_not_be_understood_is_refused` |
//! | a connection, or a lock on the directory, while a socket is being made | chips | a program connects that must not | avoided | it has its permissions when it is bound, and does not listen before it has its group; a lock is waited for two seconds | `sockets_have_the_mode_that_is_given_whatever_the_umask`, `sockets_are_given_to_the_group_by_number`, `socket_directory_locked_by_another_process_delays_the_start_by_two_seconds` |
//! | a service manager that does not read, is gone, or was never there | time | the loop waits for a reader | avoided | its socket does not wait, and is connected to it alone | `notify_socket_that_nobody_reads_or_that_is_gone_costs_nothing`, `notify_socket_that_cannot_be_reached_is_one_line_and_the_daemon_serves` |
//! | a clock that jumps | time | a delay is too short or without end | avoided | only `CLOCK_MONOTONIC` is looked at: the filter allows no other | `filter_wants_every_argument_of_every_rule` |
//! | a device that fails or is unplugged | data | a failed transfer is taken for a good one | avoided | `TRANS_ERR`; a line that cannot be released blocks its controller until it can | `line_that_could_not_be_released_is_tried_again_at_the_end` |
//!
//! # How long one guest can make another wait
//!
//! A request goes on the wire after at most
//!
//! ```text
//! round + guests * (2 * T + n * round)
//!
//! round    M for each other controller, 1 ms for each other guest, and what each other front-end adds
//! guests   others that may use a chip select of the same controller
//! M        --max-message-ms: one message of a controller, after which others have their turn
//! T        --max-transfer-ms: no request continues an assertion that has lasted so long
//! n        messages of one transfer, at most the sum of 5 * T / M, of --max-transfer-len / bufsiz, and of
//!          256 KiB / bufsiz but at least 4, each rounded up
//! ```
//!
//! The 1 ms is for a guest's turn: it may send one message that is shorter, after which its controller does not
//! rest (see [`bus`](crate::spi::bus)).
//!
//! The n of a driver that means no harm is the sum of T / M and --max-transfer-len / bufsiz. A hostile driver can
//! multiply the first by five: delays take up to three fifths of each message, and a word that takes more than
//! half of the rest leaves no room for a second one. It can add the third term: spidev counts each small buffer
//! as 128 bytes, and a word across two buffers is one by itself.
//!
//! A transfer may ask that its chip select stay released after it, for at most 40 ms. A guest that waits for the
//! same chip select waits that time, too; meanwhile each guest of another chip select may have one turn more.
//!
//! The administrator sets M, T, the length and `bufsiz`. A hold without a request ends after
//! `--cs-hold-timeout-ms`, within T. If a controller hangs, Linux's `spi_transfer_wait()` gives up after twice
//! the wire time and 200 ms. A front-end adds 10 ms if a write to its eventfd blocks (100 ms the first time in
//! the daemon's life), after which its socket does not listen for 1 to 64 seconds. One with much memory can add
//! more: see the first entry of "Not defended". Shown by
//! `turns_on_another_controller_are_waited_for_by_a_single_message`,
//! `time_of_each_message_is_at_most_what_is_set`, `validate_lets_words_have_a_fifth_of_each_message_at_least`,
//! `plan_of_buffers_cut_to_harm_has_no_more_messages_than_its_bound` and
//! `delay_inactive_keeps_the_chip_select_released_for_its_guest_and_for_others`, and measured by `tests/latency`.
//!
//! # Not defended
//!
//! In brackets: the asset and the treatment.
//!
//! - (time, shared) A front-end's memory, in proportion to its size. While the front-end punches a hole into it
//!   (`fallocate()`), our access to a page there waits until the whole hole is made: 0.4 s for
//!   each GiB (measured, with the machine loaded: 1.6 s for 2 GiB). When memory is removed, the daemon
//!   unmaps the pages that it touched: 0.1 s for each GiB of which every 64 KiB were touched
//!   (0.5 s for 3 GiB, loaded). The host bounds this by the memory that each VM may have.
//! - (time, shared) With `--guest-memory=any`, the daemon's time against any front-end. An access to a page of a file
//!   waits for the disk, the driver or the FUSE server that provides it, which may never answer. So does the
//!   close of a file of such a server. The administrator who gives the option trusts every front-end
//!   with the time of all guests.
//! - (host, retained) A file that had to be left open, since its close may wait for ever, is closed at the end of the
//!   process. By then chip selects are released and sockets removed, but the process stays until the file
//!   system answers or is aborted (`/sys/fs/fuse/connections`), and a parent that waits for it waits as well.
//! - (data, retained) A front-end against its own guest, or a guest against its front-end: they share memory.
//! - (chips, shared) Other users of the same controller: drivers of the host and other programs. The kernel has no
//!   lock on a bus for user space; see CHIP SELECT in the manual page.
//! - (data, retained) A guest against its chips: their answers are passed on as they are.
//! - (chips, shared) Guests that share a chip, beyond `read-only=` and `deny=`: one that may write can leave it in any
//!   mode, in which the next guest finds it, or keep it busy. A controller that cannot keep chip select
//!   between two messages splits a command into several, which were not checked as such.
//! - (time, shared) A host under memory pressure that has to fetch a guest's pages from a disk while we read them;
//!   huge pages of 1 GiB that are cleared at our first touch; a guest's memory that is charged to
//!   the daemon's cgroup since it was touched here first, under a limit that it cannot keep.
//! - (time, shared) A front-end that has its call eventfd watched by very many epoll sets: the kernel tells each of
//!   them, within our write. 900,000 watches were measured to take up to 0.18 s a write. The host
//!   limits them for each user (`fs.epoll.max_user_watches`).
//! - (host, retained) A program that blocks the kernel's workers which close files for the whole host can keep dead guests'
//!   memory from being freed. Before Linux 6.9 there is no such worker: there a last close that
//!   waits does so in the daemon.
//! - (time, shared) A host that allows the daemon fewer fds than its guests may need, which it says at start. There
//!   one front-end's messages can use them up, and of the fds for which there is no room left the
//!   kernel makes the last close in the daemon.
//! - (time, shared) A front-end of the daemon's own user can use up what the kernel grants that user: files in
//!   flight, watches, memory. Files in flight in connections that its socket has not accepted yet stay there until
//!   the daemon ends. Give each front-end a user of its own.
//! - (data, retained) Timing: the time that a request takes tells something of other guests' requests.
//!
//! # Not offered
//!
//! Live migration (no dirty logging, no inflight region), an IOMMU, postcopy, packed rings, more
//! than one queue.
