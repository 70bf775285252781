/*
 * disk WORK FILE: one kind of work on a file of the guest's root file system, all of it checked. The time is taken
 * outside, between the lines that the script prints before and after.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 4096, LARGE = 1 << 20, FILE_SIZE = 256 << 20, RANDOM_COUNT = 20000, SYNC_COUNT = 1000 };

static unsigned char *buffer;

static void die(const char *what)
{
	fprintf(stderr, "disk: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

/* A block tells its own place at both ends: cheap to write, and a misplaced one shows. */
static void stamp(unsigned char *block, uint64_t place)
{
	memcpy(block, &place, sizeof place);
	memcpy(block + BLOCK - sizeof place, &place, sizeof place);
}

static void check(const unsigned char *block, uint64_t place)
{
	uint64_t head, tail;
	memcpy(&head, block, sizeof head);
	memcpy(&tail, block + BLOCK - sizeof tail, sizeof tail);
	if (head != place || tail != place) {
		fprintf(stderr, "disk: block %llu holds %llu and %llu\n", (unsigned long long)place, (unsigned long long)head,
			(unsigned long long)tail);
		exit(1);
	}
}

static int open_file(const char *path, int flags)
{
	int file = open(path, flags, 0644);
	if (file < 0)
		die(path);
	return file;
}

static void sequential_write(const char *path, int flags)
{
	int file = open_file(path, O_WRONLY | O_CREAT | flags);
	for (off_t at = 0; at < FILE_SIZE; at += LARGE) {
		for (off_t block = 0; block < LARGE; block += BLOCK)
			stamp(buffer + block, (at + block) / BLOCK);
		if (pwrite(file, buffer, LARGE, at) != LARGE)
			die("pwrite");
	}
	if (fsync(file))
		die("fsync");
}

static void sequential_read(const char *path, int flags)
{
	int file = open_file(path, O_RDONLY | flags);
	for (off_t at = 0; at < FILE_SIZE; at += LARGE) {
		if (pread(file, buffer, LARGE, at) != LARGE)
			die("pread");
		for (off_t block = 0; block < LARGE; block += BLOCK)
			check(buffer + block, (at + block) / BLOCK);
	}
}

static void random_blocks(const char *path, int writing)
{
	int file = open_file(path, (writing ? O_WRONLY : O_RDONLY) | O_DIRECT);
	for (uint64_t n = 0; n < RANDOM_COUNT; n++) {
		uint64_t place = mix(n) % (FILE_SIZE / BLOCK);
		if (writing) {
			stamp(buffer, place);
			if (pwrite(file, buffer, BLOCK, place * BLOCK) != BLOCK)
				die("pwrite");
		} else {
			if (pread(file, buffer, BLOCK, place * BLOCK) != BLOCK)
				die("pread");
			check(buffer, place);
		}
	}
	if (writing && fsync(file))
		die("fsync");
}

static void appended_and_synced(const char *path)
{
	int file = open_file(path, O_WRONLY | O_CREAT | O_TRUNC);
	for (uint64_t n = 0; n < SYNC_COUNT; n++) {
		stamp(buffer, n);
		if (pwrite(file, buffer, BLOCK, n * BLOCK) != BLOCK || fsync(file))
			die("append");
	}
}

int main(int count, char **words)
{
	if (count != 3) {
		fputs("usage: disk seq-write|seq-read|direct-write|direct-read|rand-write|rand-read|fsync FILE\n", stderr);
		return 2;
	}
	if (posix_memalign((void **)&buffer, BLOCK, LARGE))
		die("memory");
	memset(buffer, 0x5a, LARGE);
	const char *work = words[1], *path = words[2];
	if (!strcmp(work, "seq-write"))
		sequential_write(path, 0);
	else if (!strcmp(work, "direct-write"))
		sequential_write(path, O_DIRECT);
	else if (!strcmp(work, "seq-read"))
		sequential_read(path, 0);
	else if (!strcmp(work, "direct-read"))
		sequential_read(path, O_DIRECT);
	else if (!strcmp(work, "rand-write"))
		random_blocks(path, 1);
	else if (!strcmp(work, "rand-read"))
		random_blocks(path, 0);
	else if (!strcmp(work, "fsync"))
		appended_and_synced(path);
	else
		return 2;
	return 0;
}
