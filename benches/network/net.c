/* The guest's part of the network benchmark: streams that are compared byte by byte, round trips, connections, and
   what single accesses to a card cost. Marks on the console tell the host when each begins and ends. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 1 << 20 };
static unsigned char pattern[2 * BLOCK], buffer[BLOCK];

static void die(const char *what) {
	perror(what);
	exit(1);
}

/* The same bytes as on the host: xorshift64, lowest byte first. */
static void make_pattern(void) {
	uint64_t x = 0x9e3779b97f4a7c15;
	for (int i = 0; i < BLOCK; i += 8) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		memcpy(pattern + i, &x, 8);
	}
	memcpy(pattern + BLOCK, pattern, BLOCK);
}

static int call(const char *port) {
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
	inet_pton(AF_INET, "10.0.2.2", &to.sin_addr);
	int s = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	if (s < 0 || connect(s, (struct sockaddr *)&to, sizeof to))
		die("connect");
	setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	return s;
}

static void send_stream(int s, long long total) {
	for (long long at = 0; at < total;) {
		long long left = total - at, room = 65536;
		ssize_t n = write(s, pattern + at % BLOCK, left < room ? left : room);
		if (n <= 0)
			die("write");
		at += n;
	}
	shutdown(s, SHUT_WR);
	/* The host says that it has all, and that all was right. */
	char answer = 0;
	if (read(s, &answer, 1) != 1 || answer != 'y')
		die("the host's verdict");
}

static void receive_stream(int s, long long total) {
	long long at = 0;
	for (ssize_t n; (n = read(s, buffer, 65536)) > 0; at += n)
		if (memcmp(buffer, pattern + at % BLOCK, n))
			die("other bytes than were sent");
	if (at != total)
		die("another number of bytes than were sent");
}

static void round_trips(int s, long count) {
	for (char c; count-- > 0;)
		if (write(s, "x", 1) != 1 || read(s, &c, 1) != 1)
			die("round trip");
}

static void connections(const char *port, long count) {
	while (count-- > 0) {
		int s = call(port);
		char c;
		shutdown(s, SHUT_WR);
		if (read(s, &c, 1) != 0)
			die("the host's end");
		close(s);
	}
}

static volatile uint32_t *registers(const char *path, size_t len) {
	int fd = open(path, O_RDWR | O_SYNC);
	void *at = fd < 0 ? MAP_FAILED : mmap(0, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		die(path);
	return at;
}

static double now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

/* The status register of an e1000. */
static void register_reads(const char *device, long count) {
	char path[128];
	snprintf(path, sizeof path, "%s/resource0", device);
	volatile uint32_t *r = registers(path, 0x20000);
	uint32_t all = ~0u;
	double from = now();
	for (long i = 0; i < count; i++)
		all &= r[2];
	printf("@value %.1f\n", (now() - from) / count);
	if (!(all & 2))
		die("the link is down");
}

/* Notifications of the transmit queue, which is empty. */
static void kicks(const char *device, long count, long pause_us) {
	char path[128];
	snprintf(path, sizeof path, "%s/resource4", device);
	volatile uint16_t *r = (volatile uint16_t *)registers(path, 0x4000);
	double spent = 0, empty = 0;
	for (long i = 0; i < count; i++) {
		double from = now();
		r[(0x3000 + 4) / 2] = 1;
		double to = now();
		spent += to - from;
		empty += now() - to;
		if (pause_us)
			usleep(pause_us);
	}
	printf("@value %.1f\n", (spent - empty) / count);
}

int main(int argc, char **argv) {
	if (argc != 5)
		return 2;
	const char *what = argv[1], *port = argv[2], *device = argv[4];
	long long n = atoll(argv[3]);
	make_pattern();
	setvbuf(stdout, 0, _IOLBF, 0);
	int s = strcmp(what, "send") && strcmp(what, "receive") && strcmp(what, "round-trip") ? -1 : call(port);
	printf("@begin %s\n", what);
	if (!strcmp(what, "send"))
		send_stream(s, n);
	else if (!strcmp(what, "receive"))
		receive_stream(s, n);
	else if (!strcmp(what, "round-trip"))
		round_trips(s, n);
	else if (!strcmp(what, "connections"))
		connections(port, n);
	else if (!strcmp(what, "register"))
		register_reads(device, n);
	else if (!strcmp(what, "kick"))
		kicks(device, n, 0);
	else if (!strcmp(what, "kick-rarely"))
		kicks(device, n, 1000);
	else
		return 2;
	printf("@end %s\n", what);
	return 0;
}
