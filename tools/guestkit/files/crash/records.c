/*
 * Durable work for the crash test. `records write DIR` reports a record on the console only after the system said that
 * it is on the disk; `records verify DIR a=N f=N o=N` looks whether all that was reported is there, byte for byte.
 *
 *   a  appends records of an odd size to one file, fdatasync after each
 *   f  a file for each record, of many sizes; fsync of file and folder; some come into being by rename
 *   o  overwrites slots of a preallocated file in an order that only looks random, fdatasync after each
 *   (noise)  large files that nobody syncs, made and deleted
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { APPENDED = 3001, SLOT = 4096, SLOTS = 2048, LARGEST = 200000, NOISE = 4 << 20 };

static unsigned char buffer[NOISE], other[NOISE];
static const char *folder;

static void die(const char *what)
{
	printf("@failed %s: %s\n", what, strerror(errno));
	fflush(stdout);
	exit(1);
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

/* The content of a record: its kind and number decide every byte. */
static void fill(unsigned char *to, size_t length, char kind, uint64_t number)
{
	uint64_t seed = mix(number * 256 + (unsigned char)kind);
	for (size_t at = 0; at < length; at += 8) {
		uint64_t word = mix(seed + at);
		memcpy(to + at, &word, length - at < 8 ? length - at : 8);
	}
}

static int open_in(const char *name, int flags)
{
	char path[300];
	snprintf(path, sizeof path, "%s/%s", folder, name);
	return open(path, flags, 0644);
}

static void write_all(int file, const void *data, size_t length, off_t at)
{
	while (length) {
		ssize_t put = pwrite(file, data, length, at);
		if (put <= 0)
			die("pwrite");
		data = (const char *)data + put;
		length -= put;
		at += put;
	}
}

static int read_all(int file, size_t length, off_t at)
{
	return pread(file, other, length, at) == (ssize_t)length;
}

static void report(char kind, uint64_t number)
{
	char line[40];
	int length = snprintf(line, sizeof line, "@%c %llu\n", kind, (unsigned long long)number);
	if (write(1, line, length) != length)
		exit(1);
}

static void appender(void)
{
	int file = open_in("appended", O_WRONLY | O_CREAT);
	if (file < 0)
		die("appended");
	for (uint64_t n = 1;; n++) {
		fill(buffer, APPENDED, 'a', n);
		write_all(file, buffer, APPENDED, (n - 1) * APPENDED);
		if (fdatasync(file))
			die("fdatasync");
		report('a', n);
	}
}

static size_t file_length(uint64_t n)
{
	return n % 4 ? mix(n) % 9000 + 1 : mix(n) % LARGEST + 1;
}

static void filer(void)
{
	int at = open_in("files", O_RDONLY | O_DIRECTORY);
	if (at < 0)
		die("files");
	for (uint64_t n = 1;; n++) {
		char name[40], first[48];
		int renamed = n % 3 == 0;
		snprintf(name, sizeof name, "%llu", (unsigned long long)n);
		snprintf(first, sizeof first, "%s%s", name, renamed ? ".new" : "");
		int file = openat(at, first, O_WRONLY | O_CREAT | O_TRUNC, 0644);
		if (file < 0)
			die(first);
		fill(buffer, file_length(n), 'f', n);
		write_all(file, buffer, file_length(n), 0);
		if (fsync(file) || close(file) || (renamed && renameat(at, first, at, name)) || fsync(at))
			die(name);
		report('f', n);
	}
}

static void overwriter(void)
{
	int file = open_in("slots", O_RDWR | O_CREAT);
	if (file < 0 || posix_fallocate(file, 0, (off_t)SLOTS * SLOT) || fsync(file))
		die("slots");
	for (uint64_t n = 1;; n++) {
		fill(buffer, SLOT, 'o', n);
		memcpy(buffer, &n, sizeof n);
		write_all(file, buffer, SLOT, mix(n) % SLOTS * SLOT);
		if (fdatasync(file))
			die("fdatasync");
		report('o', n);
	}
}

static void noise(void)
{
	for (uint64_t n = 1;; n++) {
		char name[40];
		snprintf(name, sizeof name, "noise%d", (int)(n % 7));
		int file = open_in(name, O_WRONLY | O_CREAT | O_TRUNC);
		if (file < 0)
			die(name);
		fill(buffer, 1 << 16, 'n', n);
		for (int part = 0; part < 64; part++)
			write_all(file, buffer, 1 << 16, (off_t)part << 16);
		close(file);
		usleep(100000);
	}
}

static void lost(const char *what, uint64_t number)
{
	printf("@lost %s %llu\n", what, (unsigned long long)number);
	fflush(stdout);
	exit(1);
}

static uint64_t verify_appended(uint64_t reported)
{
	int file = open_in("appended", O_RDONLY);
	uint64_t n = 0;
	while (file >= 0 && read_all(file, APPENDED, n * APPENDED)) {
		fill(buffer, APPENDED, 'a', n + 1);
		if (memcmp(buffer, other, APPENDED)) {
			/* Beyond what was reported, length and content may not have come together. */
			if (n < reported)
				lost("a", n + 1);
			break;
		}
		n++;
	}
	if (n < reported)
		lost("a", n + 1);
	return n;
}

static uint64_t verify_files(uint64_t reported)
{
	uint64_t n = 1;
	for (;; n++) {
		char name[48];
		struct stat status;
		snprintf(name, sizeof name, "files/%llu", (unsigned long long)n);
		int file = open_in(name, O_RDONLY);
		size_t length = file_length(n);
		int good = file >= 0 && !fstat(file, &status) && (size_t)status.st_size == length && read_all(file, length, 0);
		if (good) {
			fill(buffer, length, 'f', n);
			good = !memcmp(buffer, other, length);
		}
		if (file >= 0)
			close(file);
		if (!good && n <= reported)
			lost("f", n);
		if (!good)
			return n - 1;
	}
}

static uint64_t verify_slots(uint64_t reported)
{
	static uint64_t newest[SLOTS];
	int file = open_in("slots", O_RDONLY);
	uint64_t highest = 0;
	for (uint64_t n = 1; n <= reported; n++)
		newest[mix(n) % SLOTS] = n;
	for (uint64_t slot = 0; slot < SLOTS; slot++) {
		uint64_t n;
		if (file < 0 || !read_all(file, SLOT, slot * SLOT)) {
			if (newest[slot])
				lost("o", newest[slot]);
			continue;
		}
		memcpy(&n, other, sizeof n);
		if (n < newest[slot])
			lost("o", newest[slot]);
		if (!n)
			continue;
		fill(buffer, SLOT, 'o', n);
		memcpy(buffer, &n, sizeof n);
		if (mix(n) % SLOTS != slot || memcmp(buffer, other, SLOT))
			lost("o", n);
		highest = n > highest ? n : highest;
	}
	return highest;
}

static uint64_t number_of(char **words, char kind)
{
	for (; *words; words++)
		if ((*words)[0] == kind && (*words)[1] == '=')
			return strtoull(*words + 2, NULL, 10);
	return 0;
}

int main(int count, char **words)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (count < 3) {
		fputs("usage: records write|verify DIR [a=N f=N o=N]\n", stderr);
		return 2;
	}
	folder = words[2];
	if (!strcmp(words[1], "verify")) {
		unsigned long long a = verify_appended(number_of(words + 3, 'a'));
		unsigned long long f = verify_files(number_of(words + 3, 'f'));
		unsigned long long o = verify_slots(number_of(words + 3, 'o'));
		printf("@verified a=%llu f=%llu o=%llu\n", a, f, o);
		return 0;
	}
	char files[300];
	snprintf(files, sizeof files, "%s/files", folder);
	if ((mkdir(folder, 0755) && errno != EEXIST) || (mkdir(files, 0755) && errno != EEXIST))
		die(folder);
	/* What was made before the first record is none of the writers' business: it is on the disk from here on. */
	sync();
	void (*workers[])(void) = {appender, filer, overwriter, noise};
	for (size_t at = 0; at < sizeof workers / sizeof *workers; at++)
		if (!fork())
			workers[at]();
	pause();
	return 1;
}
