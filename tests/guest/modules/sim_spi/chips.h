/* SPDX-License-Identifier: (GPL-2.0 OR BSD-3-Clause) */
/*
 * Chips behind a chip select, as their data sheets describe them.
 *
 * A command begins when chip select is asserted: an opcode, address bytes, dummy bytes, and data in one direction or
 * none. A read or an SRAM's write acts byte by byte; everything else acts when chip select is released, and only if the
 * command is whole then. A busy chip ignores all commands but those that read its status. It stays busy until its status
 * was read once, not for a time, so that no run depends on the speed of the machine. Programming a page of flash takes
 * less than a millisecond, which is over before anybody asks.
 */
#include <linux/minmax.h>
#include <linux/string.h>
#include <linux/types.h>

enum action {
	NOTHING,
	SAY_ID, SAY_SFDP, SAY_DEVICE, SAY_STATUS, FETCH,
	STORE, PROGRAM, ERASE, SET_STATUS, ENABLE, DISABLE, SLEEP, WAKE, ENABLE_RESET, RESET, ENTER_FOUR, LEAVE_FOUR,
};

enum data { NONE, IN, OUT };

struct command {
	u8 opcode, address, dummy;
	enum data data;
	enum action action;
	/* Of which status register, or how many bytes are erased: 0 for the whole chip. */
	u32 argument;
	/* On how many lanes the data comes; 0 for one. */
	u8 lanes;
};

#define MAX_COMMANDS 40
#define MAX_PAGE 256
#define STATUS_BUSY 0x01
#define STATUS_ENABLED 0x02
/* Of the second register: what are the third and the fourth lane are no inputs any more. */
#define STATUS_QUAD 0x02

struct chip {
	const char *name;
	u32 size;
	/* Of what is programmed at once; then the chip also wants writing to be enabled, and is busy afterwards. */
	u32 page;
	/* Programming turns ones into zeros only. */
	bool flash;
	/* What 9F says; what AB says. */
	u8 id[3], signature;
	const struct command commands[MAX_COMMANDS];
};

struct chip_counts {
	/* Assertions with at least one byte. */
	u32 commands;
	/* Chip select was released before the command was whole, or later than the command allows. */
	u32 cut;
	/* Bytes that were received on more or fewer lanes than the chip sends them on. */
	u32 wrong_lanes;
	/* The opcode is in no table; which one that was. */
	u32 unknown;
	u8 opcode;
	/* Whole, but the chip was busy, asleep, protected, or writing was not enabled. */
	u32 ignored;
	/* Carried out, and more than a read. */
	u32 changes;
};

struct tpm {
	u8 access, status;
	/* How long the command is that comes in, how much of it has come; how much of the answer is left. */
	u32 size, got, left;
};

struct chip_state {
	const struct chip *chip;
	u8 *memory;
	/* Of the command in progress. */
	const struct command *command;
	u8 opcode;
	u32 got, start, address, received;
	bool ignored;
	u8 page[MAX_PAGE];
	/* What lasts. */
	u8 status[4];
	bool asleep, reset_enabled, four_byte;
	struct tpm tpm;
	struct chip_counts counts;
};

static const struct chip memory_2m = {
	.name = "memory", .size = 2 << 20,
	.commands = {
		{ 0x02, 3, 0, OUT, STORE },
		{ 0x03, 3, 0, IN, FETCH },
	},
};

/*
 * What Winbond's W25QxxxJV have in common. Data comes on up to four lanes, all else on one; of AB, which only wakes the
 * chip when it comes alone, the form that also asks is here.
 */
#define W25Q_COMMANDS \
	{ 0x9f, 0, 0, IN, SAY_ID }, \
	{ 0x5a, 3, 1, IN, SAY_SFDP }, \
	{ 0x90, 3, 0, IN, SAY_DEVICE }, \
	{ 0xab, 0, 3, IN, WAKE }, \
	{ 0xb9, 0, 0, NONE, SLEEP }, \
	{ 0x05, 0, 0, IN, SAY_STATUS, 1 }, \
	{ 0x35, 0, 0, IN, SAY_STATUS, 2 }, \
	{ 0x15, 0, 0, IN, SAY_STATUS, 3 }, \
	{ 0x01, 0, 0, OUT, SET_STATUS, 1 }, \
	{ 0x31, 0, 0, OUT, SET_STATUS, 2 }, \
	{ 0x11, 0, 0, OUT, SET_STATUS, 3 }, \
	{ 0x06, 0, 0, NONE, ENABLE }, \
	{ 0x50, 0, 0, NONE, ENABLE }, \
	{ 0x04, 0, 0, NONE, DISABLE }, \
	{ 0x03, 3, 0, IN, FETCH }, \
	{ 0x0b, 3, 1, IN, FETCH }, \
	{ 0x3b, 3, 1, IN, FETCH, .lanes = 2 }, \
	{ 0x6b, 3, 1, IN, FETCH, .lanes = 4 }, \
	{ 0x02, 3, 0, OUT, PROGRAM }, \
	{ 0x20, 3, 0, NONE, ERASE, 4 << 10 }, \
	{ 0x52, 3, 0, NONE, ERASE, 32 << 10 }, \
	{ 0xd8, 3, 0, NONE, ERASE, 64 << 10 }, \
	{ 0xc7, 0, 0, NONE, ERASE }, \
	{ 0x60, 0, 0, NONE, ERASE }, \
	{ 0x66, 0, 0, NONE, ENABLE_RESET }, \
	{ 0x99, 0, 0, NONE, RESET },

static const struct chip nor_w25q64 = {
	.name = "w25q64", .size = 8 << 20, .page = 256, .flash = true, .id = { 0xef, 0x40, 0x17 }, .signature = 0x16,
	.commands = { W25Q_COMMANDS },
};

/* Without the register that extends an address of three bytes: it is 0. */
static const struct chip nor_w25q256 = {
	.name = "w25q256", .size = 32 << 20, .page = 256, .flash = true, .id = { 0xef, 0x40, 0x19 }, .signature = 0x18,
	.commands = {
		W25Q_COMMANDS
		{ 0xb7, 0, 0, NONE, ENTER_FOUR },
		{ 0xe9, 0, 0, NONE, LEAVE_FOUR },
		{ 0x13, 4, 0, IN, FETCH },
		{ 0x0c, 4, 1, IN, FETCH },
		{ 0x3c, 4, 1, IN, FETCH, .lanes = 2 },
		{ 0x6c, 4, 1, IN, FETCH, .lanes = 4 },
		{ 0x12, 4, 0, OUT, PROGRAM },
		{ 0x21, 4, 0, NONE, ERASE, 4 << 10 },
		{ 0xdc, 4, 0, NONE, ERASE, 64 << 10 },
	},
};

/* Of the smaller one. One header, one table: JEDEC's basic parameters at 0x80. */
static const u8 nor_sfdp[0x80 + 64] = {
	'S', 'F', 'D', 'P', 0x05, 0x01, 0x00, 0xff,
	0x00, 0x05, 0x01, 0x10, 0x80, 0x00, 0x00, 0xff,
	[0x10 ... 0x7f] = 0xff,
	[0x80] = 0xe5, 0x20, 0xf9, 0xff, 0xff, 0xff, 0xff, 0x03, 0x44, 0xeb, 0x08, 0x6b, 0x08, 0x3b, 0x42, 0xbb,
	0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0xff, 0xff, 0x40, 0xeb, 0x0c, 0x20, 0x0f, 0x52,
	0x10, 0xd8, 0x00, 0x00, 0x36, 0x02, 0xa6, 0x00, 0x82, 0xea, 0x14, 0xc9, 0xe9, 0x63, 0x76, 0x33,
	0x7a, 0x75, 0x7a, 0x75, 0xf7, 0xa2, 0xd5, 0x5c, 0x19, 0xf7, 0x4d, 0xff, 0xe9, 0x30, 0xf8, 0x80,
};

/* ST M25P16: sectors of 64 KiB only, and nothing that describes it. */
static const struct chip nor_m25p16 = {
	.name = "m25p16", .size = 2 << 20, .page = 256, .flash = true, .id = { 0x20, 0x20, 0x15 }, .signature = 0x14,
	.commands = {
		{ 0x9f, 0, 0, IN, SAY_ID },
		{ 0xab, 0, 3, IN, WAKE },
		{ 0xb9, 0, 0, NONE, SLEEP },
		{ 0x05, 0, 0, IN, SAY_STATUS, 1 },
		{ 0x01, 0, 0, OUT, SET_STATUS, 1 },
		{ 0x06, 0, 0, NONE, ENABLE },
		{ 0x04, 0, 0, NONE, DISABLE },
		{ 0x03, 3, 0, IN, FETCH },
		{ 0x0b, 3, 1, IN, FETCH },
		{ 0x02, 3, 0, OUT, PROGRAM },
		{ 0xd8, 3, 0, NONE, ERASE, 64 << 10 },
		{ 0xc7, 0, 0, NONE, ERASE },
	},
};

/* Microchip 23K256. Its register is the mode: 0x40 goes on from byte to byte, 0x80 within 32 bytes, 0x00 stays. */
static const struct chip sram_23k256 = {
	.name = "23k256", .size = 32 << 10,
	.commands = {
		{ 0x03, 2, 0, IN, FETCH },
		{ 0x02, 2, 0, OUT, STORE },
		{ 0x05, 0, 0, IN, SAY_STATUS, 1 },
		{ 0x01, 0, 0, OUT, SET_STATUS, 1 },
	},
};

/* Atmel AT25256. */
static const struct chip eeprom_at25256 = {
	.name = "at25256", .size = 32 << 10, .page = 64,
	.commands = {
		{ 0x06, 0, 0, NONE, ENABLE },
		{ 0x04, 0, 0, NONE, DISABLE },
		{ 0x05, 0, 0, IN, SAY_STATUS, 1 },
		{ 0x01, 0, 0, OUT, SET_STATUS, 1 },
		{ 0x03, 2, 0, IN, FETCH },
		{ 0x02, 2, 0, OUT, PROGRAM },
	},
};

/* --- Chips with opcodes --- */

static bool is_protected(const struct chip_state *state, u32 from, u32 len)
{
	const struct chip *chip = state->chip;
	u32 all = chip->flash ? 7 : 3;
	u32 bits = state->status[1] >> 2 & all;
	u32 protected = bits ? chip->size >> (all - bits) : 0;

	if (chip->flash && state->status[1] & 0x20)
		return from < protected;
	return from + len > chip->size - protected;
}

/* The address after this one; the mode of an SRAM says whether it moves. */
static u32 next_address(const struct chip_state *state)
{
	u32 next = state->address + 1;

	if (state->chip == &sram_23k256 && !(state->status[1] & 0x40))
		next = state->status[1] & 0x80 ? (state->address & ~31u) | (next & 31) : state->address;
	return next % state->chip->size;
}

/* SFDP and the chip's own id have three in any mode. */
static u32 address_bytes(const struct chip_state *state)
{
	const struct command *command = state->command;
	bool fixed = command->action == SAY_SFDP || command->action == SAY_DEVICE;

	return state->four_byte && command->address == 3 && !fixed ? 4 : command->address;
}

static u8 say_sfdp(const struct chip_state *state, u32 at)
{
	if (at == 0x82 && state->chip == &nor_w25q256) /* addresses of three or four bytes */
		return 0xfb;
	if (at == 0x87) /* how many bits there are, less one: the highest byte of that */
		return (state->chip->size >> 21) - 1;
	return at < sizeof(nor_sfdp) ? nor_sfdp[at] : 0xff;
}

static u8 say_status(struct chip_state *state, u32 number)
{
	u8 said = state->status[number];

	if (number == 1 && said & STATUS_BUSY)
		state->status[1] &= ~(STATUS_BUSY | STATUS_ENABLED);
	return said;
}

/* The byte at `index` of what the chip sends. */
static u8 send(struct chip_state *state, u32 index)
{
	u32 at = state->start + index;
	u8 said;

	switch (state->command->action) {
	case SAY_ID:
		return state->chip->id[index % sizeof(state->chip->id)];
	case SAY_DEVICE:
		return at % 2 ? state->chip->signature : state->chip->id[0];
	case WAKE:
		return state->chip->signature;
	case SAY_SFDP:
		return say_sfdp(state, at);
	case SAY_STATUS:
		return say_status(state, state->command->argument);
	case FETCH:
		said = state->memory[state->address];
		state->address = next_address(state);
		return said;
	default:
		return 0xff;
	}
}

static void receive(struct chip_state *state, u8 in)
{
	u32 index = state->received++;

	if (state->command->action == STORE) {
		state->memory[state->address] = in;
		state->address = next_address(state);
	} else if (state->command->action == PROGRAM) {
		state->page[(state->start + index) % state->chip->page] = in;
	} else if (index < 2) { /* a status register and the one after it */
		state->page[index] = in;
	}
}

/* What it sends, to somebody who listens on `lanes`. */
static u8 send_on(struct chip_state *state, u32 index, u8 lanes)
{
	u8 said = send(state, index);

	if (lanes == (state->command->lanes ?: 1))
		return said;
	state->counts.wrong_lanes++;
	return ~said;
}

static u8 chip_byte(struct chip_state *state, u8 in, u8 lanes)
{
	const struct command *command = state->command;
	u32 at = state->got++;

	if (!at) {
		for (command = state->chip->commands; command->action && command->opcode != in; command++)
			;
		state->command = command;
		state->opcode = in;
		state->ignored = (state->status[1] & STATUS_BUSY && command->action != SAY_STATUS) ||
				 (state->asleep && command->action != WAKE) ||
				 (command->lanes == 4 && !(state->status[2] & STATUS_QUAD));
		return 0xff;
	}
	at--;
	if (at < address_bytes(state)) {
		state->address = (state->address << 8 | in) % state->chip->size;
		state->start = state->address;
		return 0xff;
	}
	at -= address_bytes(state);
	if (state->ignored || at < command->dummy)
		return 0xff;
	if (command->data == OUT)
		receive(state, in);
	return command->data == IN ? send_on(state, at - command->dummy, lanes) : 0xff;
}

static void set_status(struct chip_state *state)
{
	u32 first = state->command->argument;
	u8 kept = state->chip->page ? STATUS_BUSY | STATUS_ENABLED : 0;

	state->status[first] = first == 1 ? (state->page[0] & ~kept) | (state->status[1] & kept) : state->page[0];
	if (first == 1 && state->received > 1)
		state->status[2] = state->page[1];
}

static void program(struct chip_state *state)
{
	u32 page = state->chip->page, i;

	for (i = 0; i < min(state->received, page); i++) {
		u32 in_page = (state->start + i) % page;
		u8 *cell = &state->memory[state->start / page * page + in_page];

		*cell = state->page[in_page] & (state->chip->flash ? *cell : 0xff);
	}
}

/* What needs writing to be enabled. Returns whether the chip does it. */
static bool change(struct chip_state *state)
{
	const struct command *command = state->command;
	u32 len = command->argument ?: state->chip->size;
	u32 from = state->start / len * len;

	if (!state->chip->page) {
		set_status(state);
		return true;
	}
	if (!(state->status[1] & STATUS_ENABLED))
		return false;
	if (command->action == SET_STATUS) {
		set_status(state);
	} else if (command->action == PROGRAM) {
		if (is_protected(state, state->start, 1))
			return false;
		program(state);
	} else {
		if (is_protected(state, from, len))
			return false;
		memset(state->memory + from, 0xff, len);
	}
	if (command->action == PROGRAM && state->chip->flash)
		state->status[1] &= ~STATUS_ENABLED;
	else
		state->status[1] |= STATUS_BUSY;
	return true;
}

/* Returns whether the chip did it. */
static bool act(struct chip_state *state)
{
	switch (state->command->action) {
	case PROGRAM:
	case ERASE:
	case SET_STATUS:
		return change(state);
	case ENABLE:
		state->status[1] |= STATUS_ENABLED;
		return true;
	case DISABLE:
		state->status[1] &= ~STATUS_ENABLED;
		return true;
	case SLEEP:
	case WAKE:
		state->asleep = state->command->action == SLEEP;
		return true;
	case RESET:
		if (!state->reset_enabled)
			return false;
		state->status[1] &= ~STATUS_ENABLED;
		state->four_byte = false;
		return true;
	case ENTER_FOUR:
	case LEAVE_FOUR:
		state->four_byte = state->command->action == ENTER_FOUR;
		return true;
	default:
		return true;
	}
}

static void end_chip_command(struct chip_state *state)
{
	const struct command *command = state->command;
	u32 whole = 1 + address_bytes(state) + command->dummy + (command->data != NONE);
	struct chip_counts *counts = &state->counts;

	if (!command->action) {
		counts->unknown++;
		counts->opcode = state->opcode;
	} else if (state->got < whole || (command->data == NONE && state->got > whole))
		counts->cut++;
	else if (state->ignored || !act(state))
		counts->ignored++;
	else if (command->action > FETCH)
		counts->changes++;
	state->reset_enabled = command->action == ENABLE_RESET;
}

/*
 * --- A TPM: Infineon SLB9670 in the middle of an upgrade of its firmware, when it answers every command so ---
 *
 * Four bytes, the first of which is direction and length, then the register's; before these it has the host wait for a
 * byte.
 */
#define TPM_HEADER 4
#define TPM_ACCESS 0x000
#define TPM_INTF_CAPS 0x014
#define TPM_STS 0x018
#define TPM_DATA_FIFO 0x024
#define TPM_DID_VID 0xf00
#define TPM_RID 0xf04
#define TPM_ACTIVE 0x20
#define TPM_VALID 0x80
#define TPM_READY 0x40
#define TPM_GO 0x20
#define TPM_AVAILABLE 0x10
#define TPM_EXPECT 0x08
static const struct chip tpm_slb9670 = { .name = "tpm", .size = 1 << 24 };
static const u8 tpm_answer[] = { 0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x2d };

static u8 tpm_send(struct tpm *tpm, u32 at)
{
	u32 value = 0;
	u8 said;

	switch (at & 0xffc) {
	case TPM_DATA_FIFO:
		said = tpm->left ? tpm_answer[sizeof(tpm_answer) - tpm->left--] : 0xff;
		tpm->status = tpm->left ? TPM_AVAILABLE : 0;
		return said;
	case TPM_ACCESS:
		value = 0x81 | tpm->access;
		break;
	case TPM_INTF_CAPS:
		value = 0x30000697;
		break;
	case TPM_STS: /* TPM 2.0, 64 bytes at once */
		value = 1 << 26 | 64 << 8 | TPM_VALID | tpm->status;
		break;
	case TPM_DID_VID:
		value = 0x001b15d1;
		break;
	case TPM_RID:
		value = 0x10;
		break;
	}
	return value >> 8 * (at & 3);
}

static void tpm_receive(struct tpm *tpm, u32 at, u8 in)
{
	switch (at & 0xfff) {
	case TPM_ACCESS:
		tpm->access = in & 0x02 ? TPM_ACTIVE : 0;
		break;
	case TPM_STS:
		tpm->got = 0;
		tpm->left = in & TPM_GO ? sizeof(tpm_answer) : 0;
		tpm->status = in & TPM_GO ? TPM_AVAILABLE : in & TPM_READY;
		break;
	case TPM_DATA_FIFO: /* bytes 2 to 5 are the length; it is below 256 */
		if (tpm->got++ == 5)
			tpm->size = in;
		tpm->status = tpm->got < 6 || tpm->got < tpm->size ? TPM_EXPECT : 0;
		break;
	}
}

static u8 tpm_byte(struct chip_state *state, u8 in)
{
	u32 at = state->got++;
	u32 target;

	if (!at)
		state->opcode = in;
	if (at < TPM_HEADER) {
		state->address = state->address << 8 | in;
		return 0x00;
	}
	if (at == TPM_HEADER)
		return 0x01;
	/* The FIFO's bytes all go to one address. */
	target = (state->address & 0xfff) == TPM_DATA_FIFO ? TPM_DATA_FIFO : state->address + at - TPM_HEADER - 1;
	if (state->opcode & 0x80)
		return tpm_send(&state->tpm, target);
	tpm_receive(&state->tpm, target, in);
	return 0xff;
}

/* --- What the controller calls --- */

static void begin_command(struct chip_state *state)
{
	state->got = 0;
	state->start = 0;
	state->address = 0;
	state->received = 0;
}

static void end_command(struct chip_state *state)
{
	if (!state->got)
		return;
	state->counts.commands++;
	if (state->chip != &tpm_slb9670)
		end_chip_command(state);
	else if (state->got != TPM_HEADER + 1 + (state->opcode & 63) + 1)
		state->counts.cut++;
}

static void exchange_with_chip(struct chip_state *state, const u8 *tx, u8 *rx, u32 len, u8 lanes)
{
	bool tpm = state->chip == &tpm_slb9670;
	u32 i;

	for (i = 0; i < len; i++) {
		u8 in = tx ? tx[i] : 0xff;
		u8 out = tpm ? tpm_byte(state, in) : chip_byte(state, in, lanes);

		if (rx)
			rx[i] = out;
	}
}
