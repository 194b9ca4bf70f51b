/*
 * menagerie: holds kernel objects, and looks every 100 ms whether they are still what they were. One child per kind:
 *
 *   menagerie KIND...     files events threads processes stopped unix inotify users seccomp memfd shm sysv mqueue uring
 *
 * A kind prints "ok KIND N" each time all is well, and "FAILED KIND what: why" once it is not.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *kind = "menagerie";

static _Noreturn void fail(const char *what)
{
	printf("FAILED %s %s: %s\n", kind, what, strerror(errno));
	exit(1);
}

/* Ends the kind unless it holds; errno is that of the last call. */
static void must(int holds, const char *what)
{
	if (!holds)
		fail(what);
	errno = 0;
}

static void nap(long milliseconds)
{
	struct timespec left = { milliseconds / 1000, milliseconds % 1000 * 1000000 };

	while (nanosleep(&left, &left) == -1 && errno == EINTR)
		;
}

static void well(void)
{
	static unsigned long n;

	printf("ok %s %lu\n", kind, ++n);
	nap(100);
}

static void *shared(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	must(memory != MAP_FAILED, "mmap");
	return memory;
}

static int make(const char *path)
{
	int file = open(path, O_RDWR | O_CREAT, 0600);

	must(file >= 0, path);
	return file;
}

/* An open file without a name, one with a lock of each kind, and where reading had come to. */
static void files(void)
{
	char text[8] = "";
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	int unlinked = make("/root/unlinked"), whole = make("/root/whole"), range = make("/root/range");

	must(unlink("/root/unlinked") == 0, "unlink");
	must(write(unlinked, "remember", 8) == 8 && lseek(unlinked, 2, SEEK_SET) == 2, "write");
	must(flock(whole, LOCK_EX) == 0 && fcntl(range, F_SETLK, &lock) == 0, "lock");
	for (;; well()) {
		int status = -1, other = make("/root/whole");

		must(lseek(unlinked, 0, SEEK_CUR) == 2, "position");
		must(pread(unlinked, text, 8, 0) == 8 && !memcmp(text, "remember", 8), "unlinked file");
		must(flock(other, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK, "flock is held");
		close(other);
		pid_t child = fork();
		if (child == 0) {
			struct flock seen = lock;

			_exit(fcntl(make("/root/range"), F_GETLK, &seen) == 0 && seen.l_type == F_WRLCK ? 0 : 1);
		}
		must(waitpid(child, &status, 0) == child && status == 0, "POSIX lock is held");
	}
}

static void events(void)
{
	struct itimerspec period = { { 0, 50000000 }, { 0, 50000000 } };
	struct epoll_event event = { .events = EPOLLIN };
	sigset_t set;
	uint64_t value;
	int poller = epoll_create1(0), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), counter = eventfd(7, 0);

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	must(sigprocmask(SIG_BLOCK, &set, NULL) == 0 && raise(SIGUSR1) == 0, "raise");
	int signals = signalfd(-1, &set, SFD_NONBLOCK);
	must(poller >= 0 && timer >= 0 && counter >= 0 && signals >= 0, "make");
	must(timerfd_settime(timer, 0, &period, NULL) == 0, "timerfd_settime");
	event.data.fd = timer;
	must(epoll_ctl(poller, EPOLL_CTL_ADD, timer, &event) == 0, "epoll_ctl");
	for (;;) {
		struct signalfd_siginfo info;

		must(epoll_wait(poller, &event, 1, 5000) == 1 && event.data.fd == timer, "epoll sees the timer");
		must(read(timer, &value, sizeof value) == sizeof value, "timerfd");
		must(read(counter, &value, sizeof value) == sizeof value && value == 7, "eventfd");
		must(write(counter, &value, sizeof value) == sizeof value, "eventfd");
		must(read(signals, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR1, "signalfd");
		must(raise(SIGUSR1) == 0, "raise");
		well();
	}
}

#define THREADS 200
static atomic_ulong beats[THREADS];
static __thread long own;

static void *beat(void *argument)
{
	for (own = (long)argument;; beats[own]++)
		nap(50);
	return NULL;
}

static void threads(void)
{
	static unsigned long seen[THREADS];
	pthread_attr_t small;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	for (long i = 0; i < THREADS; i++) {
		pthread_t thread;

		must(pthread_create(&thread, &small, beat, (void *)i) == 0, "pthread_create");
	}
	for (;; well()) {
		nap(2000);
		for (int i = 0; i < THREADS; i++) {
			unsigned long now = beats[i];

			must(now > seen[i], "every thread runs");
			seen[i] = now;
		}
	}
}

#define PROCESSES 500

static void processes(void)
{
	atomic_ulong *turns = shared(PROCESSES * sizeof *turns);
	static unsigned long seen[PROCESSES];

	for (int i = 0; i < PROCESSES; i++) {
		pid_t child = fork();

		must(child >= 0, "fork");
		if (child == 0)
			for (;; turns[i]++)
				nap(500);
	}
	for (;; well()) {
		nap(3000);
		for (int i = 0; i < PROCESSES; i++) {
			unsigned long now = turns[i];

			must(now > seen[i], "every process runs");
			seen[i] = now;
		}
	}
}

static char state_of(pid_t pid)
{
	char path[64], state = '?';

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	FILE *stat = fopen(path, "r");
	if (stat && fscanf(stat, "%*d (%*[^)]) %c", &state) != 1)
		state = '?';
	if (stat)
		fclose(stat);
	return state;
}

/* A job that somebody stopped stays so, and goes on when it is told to. */
static void stopped(void)
{
	atomic_ulong *turns = shared(sizeof *turns);
	pid_t child = fork();

	if (child == 0)
		for (;; ++*turns)
			nap(10);
	must(child > 0 && kill(child, SIGSTOP) == 0 && waitpid(child, NULL, WUNTRACED) == child, "stop");
	for (int round = 1;; round++) {
		unsigned long before = *turns;

		must(state_of(child) == 'T', "it is stopped");
		nap(50);
		must(*turns == before, "it does not run");
		if (round % 20 == 0) {
			must(kill(child, SIGCONT) == 0, "SIGCONT");
			nap(500);
			must(*turns > before, "it goes on");
			must(kill(child, SIGSTOP) == 0, "SIGSTOP");
			nap(50);
		}
		well();
	}
}

static void unix_sockets(void)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX, .sun_path = "/root/socket" };
	int listener = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0), pair[2];
	char text[8];

	must(bind(listener, (void *)&name, sizeof name) == 0 && listen(listener, 5) == 0, "listen");
	must(connect(client, (void *)&name, sizeof name) == 0, "connect");
	int server = accept(listener, NULL, NULL);
	must(server >= 0 && socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0, "accept");
	must(write(client, "queued", 6) == 6 && write(pair[0], "datagram", 8) == 8, "write");
	for (;; well()) {
		must(read(server, text, sizeof text) == 6 && !memcmp(text, "queued", 6), "queued bytes");
		must(read(pair[1], text, sizeof text) == 8 && !memcmp(text, "datagram", 8), "queued datagram");
		int more = socket(AF_UNIX, SOCK_STREAM, 0);
		must(connect(more, (void *)&name, sizeof name) == 0, "a new connection");
		int accepted = accept(listener, NULL, NULL);
		must(accepted >= 0, "accept");
		close(more);
		close(accepted);
		must(write(client, "queued", 6) == 6 && write(pair[0], "datagram", 8) == 8, "write");
	}
}

static void watches(void)
{
	char buffer[4096];
	int notify = inotify_init1(IN_NONBLOCK);

	must(mkdir("/root/watched", 0700) == 0 && inotify_add_watch(notify, "/root/watched", IN_CREATE) >= 0, "watch");
	for (;; well()) {
		int made = open("/root/watched/new", O_CREAT | O_EXCL, 0600);

		must(made >= 0, "create");
		must(read(notify, buffer, sizeof buffer) > 0, "inotify tells");
		close(made);
		must(unlink("/root/watched/new") == 0, "unlink");
	}
}

static void users(void)
{
	atomic_ulong *turns = shared(2 * sizeof *turns);
	unsigned long seen[2] = { 0, 0 };

	for (int i = 0; i < 2; i++)
		if (fork() == 0) {
			uid_t id = i ? 65534 : 1000;

			must(setgid(id) == 0 && setuid(id) == 0, "setuid");
			for (;; turns[i]++) {
				must(getuid() == id && geteuid() == id && setuid(0) == -1, "ids");
				nap(10);
			}
		}
	for (;; well()) {
		nap(500);
		for (int i = 0; i < 2; i++) {
			must(turns[i] > seen[i], "the user's process runs");
			seen[i] = turns[i];
		}
	}
}

static void filtered(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mkdir, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EXDEV),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof code / sizeof *code, code };

	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
	must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0, "seccomp");
	for (;; well())
		must(syscall(SYS_mkdir, "/root/x", 0700) == -1 && errno == EXDEV, "the filter is in force");
}

static void memory_file(void)
{
	int file = memfd_create("menagerie", MFD_ALLOW_SEALING);

	must(file >= 0 && write(file, "contents", 8) == 8, "memfd");
	must(fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK) == 0, "seal");
	char *mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	must(mapped != MAP_FAILED, "mmap");
	for (;; well()) {
		char text[8];

		must(pread(file, text, 8, 0) == 8 && !memcmp(text, mapped, 8), "file and mapping are one");
		must(fcntl(file, F_GET_SEALS) == F_SEAL_SHRINK, "seals");
		mapped[0]++;
	}
}

static void posix_shm(void)
{
	int file = shm_open("/menagerie", O_RDWR | O_CREAT, 0600);

	must(file >= 0 && ftruncate(file, 4096) == 0, "shm_open");
	atomic_ulong *word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	must(word != MAP_FAILED, "mmap");
	if (fork() == 0)
		for (;; ++*word)
			nap(10);
	for (unsigned long seen = 0;; well()) {
		nap(300);
		must(*word > seen, "the other process is heard");
		seen = *word;
	}
}

static void system_v(void)
{
	struct { long type; char text[8]; } message = { 3, "waiting" };
	int memory = shmget(4711, 8192, IPC_CREAT | 0600), queue = msgget(4711, IPC_CREAT | 0600);
	int semaphore = semget(4711, 1, IPC_CREAT | 0600);

	must(memory >= 0 && queue >= 0 && semaphore >= 0, "make");
	must(msgsnd(queue, &message, 8, 0) == 0 && semctl(semaphore, 0, SETVAL, 5) == 0, "fill");
	for (;; well()) {
		must(shmget(4711, 0, 0) == memory && semctl(semaphore, 0, GETVAL) == 5, "semaphore");
		must(msgrcv(queue, &message, 8, 3, IPC_NOWAIT) == 8 && msgsnd(queue, &message, 8, 0) == 0, "message");
	}
}

static void message_queue(void)
{
	struct mq_attr shape = { .mq_maxmsg = 4, .mq_msgsize = 64 };
	char text[64];
	mqd_t queue = mq_open("/menagerie", O_RDWR | O_CREAT | O_NONBLOCK, 0600, &shape);

	must(queue != (mqd_t)-1 && mq_send(queue, "waiting", 7, 1) == 0, "mq_open");
	for (;; well())
		must(mq_receive(queue, text, 64, NULL) == 7 && mq_send(queue, "waiting", 7, 1) == 0, "message");
}

static void ring(void)
{
	char parameters[256] = { 0 };
	int file = (int)syscall(SYS_io_uring_setup, 4, parameters);

	must(file >= 0, "io_uring_setup");
	for (;;)
		well();
}

static const struct { const char *name; void (*run)(void); } kinds[] = {
	{ "files", files }, { "events", events }, { "threads", threads }, { "processes", processes },
	{ "stopped", stopped }, { "unix", unix_sockets }, { "inotify", watches }, { "users", users },
	{ "seccomp", filtered }, { "memfd", memory_file }, { "shm", posix_shm }, { "sysv", system_v },
	{ "mqueue", message_queue }, { "uring", ring },
};

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 1; i < argc; i++) {
		pid_t child = fork();

		if (child != 0)
			continue;
		kind = argv[i];
		for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
			if (!strcmp(kind, kinds[k].name))
				kinds[k].run();
		fail("no such kind");
	}
	for (;;) {
		int status = 0;
		pid_t ended = wait(&status);

		if (ended > 0 && status != 0)
			printf("FAILED process %d ended with %x\n", ended, status);
		if (ended < 0)
			pause();
	}
}
