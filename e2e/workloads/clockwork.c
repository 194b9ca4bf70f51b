/*
 * clockwork: the workload of the demo, the tests and the benchmark. One static program, several modes; it shows from
 * inside a container what a move did to its clocks, its memory and its shared memory.
 *
 *   clockwork count [MIB]     every 10 ms prints "N MONOTONIC BOOTTIME REALTIME" (nanoseconds), publishes N in
 *                             /dev/shm/clockwork, and rewrites MIB MiB of memory once a second, checking each page
 *   clockwork serve [PORT]    answers HTTP with the published counter and the server's own clocks (default port 8080)
 *   clockwork tight [MIB]     holds MIB MiB and reads the three clocks in a tight loop; prints each gap over 1 ms and
 *                             each step back
 *   clockwork pair ask|answer two processes that count through shared memory and notice any cut that is not consistent
 *   clockwork hold [MIB]      fills MIB MiB with noise and sleeps
 *   clockwork pause           sleeps, reaps, and ends on SIGTERM
 *
 * Output is line buffered; lines that begin with a capital word report a fault, and no run without a fault prints one.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MS 1000000ULL
#define PAGE 4096UL
#define TICKS_PER_SWEEP 100UL

struct reading {
	uint64_t monotonic, boottime, realtime;
};

static _Noreturn void fail(const char *what)
{
	printf("FAILED %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t nanoseconds(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000 * MS + (uint64_t)now.tv_nsec;
}

static struct reading read_clocks(void)
{
	return (struct reading){
		.monotonic = nanoseconds(CLOCK_MONOTONIC),
		.boottime = nanoseconds(CLOCK_BOOTTIME),
		.realtime = nanoseconds(CLOCK_REALTIME),
	};
}

static void *shared(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	void *memory;

	if (fd < 0 || ftruncate(fd, PAGE) < 0)
		fail(path);
	memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
		fail("mmap");
	close(fd);
	return memory;
}

static uint64_t noise(void)
{
	static uint64_t state = 0x9e3779b97f4a7c15ULL;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

/* Memory that does not compress: a page that came back zeroed or doubled cannot look right. */
static uint64_t *fill(size_t mib)
{
	size_t words = mib * 1024 * 1024 / sizeof(uint64_t);
	uint64_t *memory = mmap(NULL, mib ? mib << 20 : PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		fail("mmap");
	for (size_t word = 0; word < words; word++)
		memory[word] = noise();
	return memory;
}

/* Rewrites one part of the memory per tick. The first word of each page holds the tick of its last rewrite. */
static void sweep(uint64_t *memory, size_t pages, uint64_t tick)
{
	size_t words = PAGE / sizeof(uint64_t);

	for (size_t page = tick % TICKS_PER_SWEEP; page < pages; page += TICKS_PER_SWEEP) {
		uint64_t *first = memory + page * words;

		if (tick >= TICKS_PER_SWEEP && *first != tick - TICKS_PER_SWEEP)
			printf("LOST page %zu: holds %" PRIu64 " at tick %" PRIu64 "\n", page, *first, tick);
		*first = tick;
		first[1 + tick % (words - 1)] = noise();
	}
}

static _Noreturn void count(size_t mib)
{
	_Atomic uint64_t *published = shared("/dev/shm/clockwork");
	uint64_t *memory = fill(mib);
	struct timespec pause = {.tv_nsec = 10 * MS};

	for (uint64_t tick = 0;; tick++) {
		struct reading now = read_clocks();

		printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", tick, now.monotonic, now.boottime, now.realtime);
		atomic_store(published, tick);
		sweep(memory, (mib << 20) / PAGE, tick);
		nanosleep(&pause, NULL);
	}
}

static void answer_http(int connection, uint64_t tick)
{
	struct reading now = read_clocks();
	char request[4096], body[256], reply[512];
	int length = snprintf(body, sizeof(body),
			      "{\"count\":%" PRIu64 ",\"monotonic\":%" PRIu64 ",\"boottime\":%" PRIu64 ",\"realtime\":%" PRIu64 "}\n",
			      tick, now.monotonic, now.boottime, now.realtime);

	if (read(connection, request, sizeof(request)) <= 0)
		return;
	length = snprintf(reply, sizeof(reply),
			  "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
			  length, body);
	if (write(connection, reply, (size_t)length) < 0)
		printf("client gone\n");
}

static _Noreturn void serve(uint16_t port)
{
	_Atomic uint64_t *published = shared("/dev/shm/clockwork");
	struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_any};
	int listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1, off = 0;

	signal(SIGPIPE, SIG_IGN);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(listener, 64) < 0)
		fail("listen");
	printf("serving on port %u\n", port);
	for (;;) {
		int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

		if (connection < 0)
			continue;
		answer_http(connection, atomic_load(published));
		shutdown(connection, SHUT_WR);
		close(connection);
	}
}

static void report(const char *what, const struct reading *from, const struct reading *to)
{
	printf("%s monotonic %" PRIu64 " %+" PRId64 " boottime %" PRIu64 " %+" PRId64 " realtime %" PRIu64 " %+" PRId64 "\n", what,
	       from->monotonic, (int64_t)(to->monotonic - from->monotonic), from->boottime,
	       (int64_t)(to->boottime - from->boottime), from->realtime, (int64_t)(to->realtime - from->realtime));
}

/*
 * A reading within which nothing intervened, so that one interruption is one gap on all three clocks. Every single
 * reading, settled or not, is compared with the one before it: MONOTONIC and BOOTTIME may never step back.
 */
static struct reading settled(struct reading *last)
{
	for (;;) {
		struct reading now = read_clocks();
		uint64_t end = nanoseconds(CLOCK_MONOTONIC);

		if (now.monotonic < last->monotonic || now.boottime < last->boottime || end < now.monotonic)
			report("BACK", last, &now);
		*last = now;
		if (end - now.monotonic < MS / 10)
			return now;
	}
}

static _Noreturn void tight(size_t mib)
{
	uint64_t *memory = fill(mib);
	struct reading last = read_clocks(), before = settled(&last);
	uint64_t said = before.monotonic;

	printf("tight monotonic %" PRIu64 " boottime %" PRIu64 "\n", before.monotonic, before.boottime);
	for (;;) {
		struct reading now = settled(&last);

		if (now.monotonic - before.monotonic > MS || now.boottime - before.boottime > MS ||
		    now.realtime - before.realtime > MS)
			report("gap", &before, &now);
		if (now.monotonic - said > 1000 * MS) {
			said = now.monotonic;
			*memory = said; // keeps the memory in use
			printf("alive %" PRIu64 "\n", now.monotonic);
		}
		before = now;
	}
}

/*
 * Question and answer, each also remembered in its process's own memory. At every instant the asker's memory equals
 * `asked` and the answerer's equals `answered`, and `asked` is `answered` or one more. A checkpoint that took the two
 * processes or the shared page at different instants breaks one of these when it is restored.
 */
struct pair {
	_Atomic uint64_t asked, answered;
};

static void check_pair(int right, uint64_t own, uint64_t asked, uint64_t answered)
{
	static uint64_t said;

	if (!right)
		printf("DISAGREE own %" PRIu64 " asked %" PRIu64 " answered %" PRIu64 "\n", own, asked, answered);
	if (own >= said + 10000) {
		said = own;
		printf("agree %" PRIu64 "\n", own);
	}
}

static _Noreturn void ask(struct pair *pair)
{
	uint64_t own = atomic_load(&pair->asked);

	for (;;) {
		uint64_t answered = atomic_load(&pair->answered), asked = atomic_load(&pair->asked);

		check_pair(asked == own && (answered == own || answered + 1 == own), own, asked, answered);
		if (answered == own)
			atomic_store(&pair->asked, ++own);
		else
			usleep(20);
	}
}

static _Noreturn void answer(struct pair *pair)
{
	uint64_t own = atomic_load(&pair->answered);

	for (;;) {
		uint64_t asked = atomic_load(&pair->asked), answered = atomic_load(&pair->answered);

		check_pair(answered == own && (asked == own || asked == own + 1), own, asked, answered);
		if (asked == own + 1)
			atomic_store(&pair->answered, ++own);
		else
			usleep(20);
	}
}

static void on_term(int signal_number)
{
	(void)signal_number;
	_exit(0);
}

static _Noreturn void rest(void)
{
	signal(SIGTERM, on_term);
	signal(SIGINT, on_term);
	for (;;)
		if (waitpid(-1, NULL, 0) < 0)
			usleep(1000 * 1000);
}

static _Noreturn void hold(size_t mib)
{
	fill(mib);
	printf("holding %zu MiB\n", mib);
	rest();
}

static size_t number(const char *text, size_t fallback)
{
	return text ? strtoul(text, NULL, 10) : fallback;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "", *argument = argc > 2 ? argv[2] : NULL;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!strcmp(mode, "count"))
		count(number(argument, 0));
	if (!strcmp(mode, "serve"))
		serve((uint16_t)number(argument, 8080));
	if (!strcmp(mode, "tight"))
		tight(number(argument, 0));
	if (!strcmp(mode, "pair") && argument && !strcmp(argument, "ask"))
		ask(shared("/dev/shm/pair"));
	if (!strcmp(mode, "pair") && argument && !strcmp(argument, "answer"))
		answer(shared("/dev/shm/pair"));
	if (!strcmp(mode, "hold"))
		hold(number(argument, 8));
	if (!strcmp(mode, "pause"))
		rest();
	fprintf(stderr, "usage: clockwork count [MIB] | serve [PORT] | tight [MIB] | pair ask|answer | hold [MIB] | pause\n");
	return 2;
}
