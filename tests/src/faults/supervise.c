/* Runs a program under a supervisor that sees each of its system calls that change files below a folder, before the kernel does:
 *
 *   supervise CONTROL FOLDER RECORD PROGRAM ARGUMENT...
 *
 * CONTROL is a file of 32-bit numbers that the test changes while the program runs (struct control). FOLDER is the data folder,
 * an absolute path; calls elsewhere are left alone. RECORD is a file to which every call is appended, or "-".
 *
 * The calls are caught with seccomp's user notifications (seccomp(2)), and not by replacing functions of the C library: the
 * program makes most of them without it. The program keeps the id of the process that was started; the supervisor is its child
 * and ends when the program has ended.
 *
 * A recorded call (struct record, little-endian, then the path, the second path and the data) was seen before it was carried out. So
 * a flush is recorded when it begins. Whoever was answered because of it was answered later.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control {
	uint32_t flush_error; /* errno of every flush; 0: none */
	uint32_t flush_delay; /* milliseconds that a flush waits before it begins */
	uint32_t flush_hangs; /* 1: flushes wait until this is 0 again */
	uint32_t write_error; /* errno of every write that makes a file longer, and of new names; 0: none */
	uint32_t write_one_in; /* only every so many-th of these fails; 0 and 1: all */
};

enum kind { WRITE = 1, FLUSH = 2, TRUNCATE = 3, CREATE = 4, RENAME = 5, UNLINK = 6, MKDIR = 7, RMDIR = 8, SYNCFS = 9 };

struct record {
	uint64_t nanos; /* CLOCK_MONOTONIC */
	uint64_t inode; /* of the open file; 0: none */
	uint64_t position; /* of a write, or the new length */
	uint64_t bytes; /* of data */
	uint32_t kind;
	uint32_t flags; /* of open */
	uint16_t path;
	uint16_t second;
	uint32_t zero;
};

static volatile struct control *control;
static const char *folder;
static size_t folder_length;
static int record_fd = -1;
static int listener;

static void die(const char *what)
{
	fprintf(stderr, "supervise: %s: %s\n", what, strerror(errno));
	exit(70);
}

static uint64_t now(void)
{
	struct timespec at;
	clock_gettime(CLOCK_MONOTONIC, &at);
	return (uint64_t)at.tv_sec * 1000000000u + at.tv_nsec;
}

static int below(const char *path)
{
	return !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

static int memory(pid_t pid, uint64_t at, void *to, size_t bytes)
{
	struct iovec local = { to, bytes }, remote = { (void *)at, bytes };
	return process_vm_readv(pid, &local, 1, &remote, 1, 0) == (ssize_t)bytes;
}

/* The path of an open file; empty: none, or deleted. */
static void path_of(pid_t pid, int fd, char *path)
{
	char link[64];
	snprintf(link, sizeof link, "/proc/%d/fd/%d", pid, fd);
	ssize_t length = readlink(link, path, PATH_MAX - 1);
	path[length < 0 ? 0 : length] = 0;
	if (length > 10 && !strcmp(path + length - 10, " (deleted)"))
		path[0] = 0;
}

/* A path in an argument, which may be relative to an open folder. */
static void path_at(pid_t pid, int dir, uint64_t at, char *path)
{
	char name[PATH_MAX] = "";
	for (size_t got = 0; got < PATH_MAX - 1; got++)
		if (!memory(pid, at + got, name + got, 1) || !name[got])
			break;
	path[0] = 0;
	if (name[0] == '/') {
		strcpy(path, name);
		return;
	}
	if (dir == AT_FDCWD) {
		char link[64];
		snprintf(link, sizeof link, "/proc/%d/cwd", pid);
		ssize_t length = readlink(link, path, PATH_MAX - 1);
		path[length < 0 ? 0 : length] = 0;
	} else {
		path_of(pid, dir, path);
	}
	size_t length = strlen(path);
	if (length && length + strlen(name) + 2 < PATH_MAX) {
		path[length] = '/';
		strcpy(path + length + 1, name);
	}
}

static void append(struct record *record, const char *path, const char *second, const void *data)
{
	if (record_fd < 0)
		return;
	record->nanos = now();
	record->path = strlen(path);
	record->second = strlen(second);
	struct iovec all[4] = {
		{ record, sizeof *record }, { (void *)path, record->path }, { (void *)second, record->second },
		{ (void *)data, record->bytes },
	};
	if (writev(record_fd, all, 4) < 0)
		die("writing the record");
}

static int fails(void)
{
	static uint32_t count;
	if (!control->write_error)
		return 0;
	uint32_t one_in = control->write_one_in;
	return one_in < 2 || count++ % one_in == 0 ? (int)control->write_error : 0;
}

/* Decides about one call: the errno of its failure, 0 to carry it out, -1 for a flush (which may have to wait). */
static int decide(struct seccomp_notif *call)
{
	static char path[PATH_MAX], second[PATH_MAX], link[64];
	static unsigned char *data;
	pid_t pid = call->pid;
	uint64_t *a = (uint64_t *)call->data.args;
	struct record record = { 0 };
	struct stat status = { 0 };
	int fd = -1;
	path[0] = second[0] = 0;
	switch (call->data.nr) {
	case SYS_pwritev: case SYS_pwritev2: case SYS_pwrite64: case SYS_ftruncate: case SYS_fdatasync: case SYS_fsync: case SYS_syncfs:
		fd = a[0];
		path_of(pid, fd, path);
		if (!below(path))
			return 0;
		snprintf(link, sizeof link, "/proc/%d/fd/%d", pid, fd);
		if (!stat(link, &status))
			record.inode = status.st_ino;
	}
	switch (call->data.nr) {
	case SYS_fdatasync: case SYS_fsync:
		record.kind = FLUSH;
		break;
	case SYS_syncfs:
		record.kind = SYNCFS;
		break;
	case SYS_ftruncate:
		record.kind = TRUNCATE;
		record.position = a[1];
		break;
	case SYS_pwrite64:
		record.kind = WRITE;
		record.position = a[3];
		record.bytes = a[2];
		data = realloc(data, record.bytes + 1);
		if (!memory(pid, a[1], data, record.bytes))
			return 0;
		break;
	case SYS_pwritev: case SYS_pwritev2: {
		struct iovec parts[1024];
		size_t count = a[2] < 1024 ? a[2] : 1024, at = 0;
		if (!memory(pid, a[1], parts, count * sizeof *parts))
			return 0;
		for (size_t n = 0; n < count; n++)
			record.bytes += parts[n].iov_len;
		data = realloc(data, record.bytes + 1);
		for (size_t n = 0; n < count; at += parts[n++].iov_len)
			if (!memory(pid, (uint64_t)parts[n].iov_base, data + at, parts[n].iov_len))
				return 0;
		record.kind = WRITE;
		record.position = a[3];
		break;
	}
	case SYS_openat:
		record.flags = a[2];
		if (!(record.flags & (O_CREAT | O_TRUNC)))
			return 0;
		path_at(pid, (int)a[0], a[1], path);
		record.kind = CREATE;
		break;
#ifdef SYS_open /* Older architectures only, as the other calls without a folder. */
	case SYS_open:
		record.flags = a[1];
		if (!(record.flags & (O_CREAT | O_TRUNC)))
			return 0;
		path_at(pid, AT_FDCWD, a[0], path);
		record.kind = CREATE;
		break;
	case SYS_rename:
		path_at(pid, AT_FDCWD, a[0], path);
		path_at(pid, AT_FDCWD, a[1], second);
		record.kind = RENAME;
		break;
	case SYS_unlink:
		path_at(pid, AT_FDCWD, a[0], path);
		record.kind = UNLINK;
		break;
	case SYS_rmdir:
		path_at(pid, AT_FDCWD, a[0], path);
		record.kind = RMDIR;
		break;
	case SYS_mkdir:
		path_at(pid, AT_FDCWD, a[0], path);
		record.kind = MKDIR;
		break;
#endif
	case SYS_renameat: case SYS_renameat2:
		path_at(pid, (int)a[0], a[1], path);
		path_at(pid, (int)a[2], a[3], second);
		record.kind = RENAME;
		break;
	case SYS_unlinkat:
		path_at(pid, (int)a[0], a[1], path);
		record.kind = a[2] & AT_REMOVEDIR ? RMDIR : UNLINK;
		break;
	case SYS_mkdirat:
		path_at(pid, (int)a[0], a[1], path);
		record.kind = MKDIR;
		break;
	default:
		return 0;
	}
	if (!below(path))
		return 0;
	if (record.kind == FLUSH || record.kind == SYNCFS) {
		int error = control->flush_error;
		if (!error)
			append(&record, path, second, data);
		return error ? error : -1;
	}
	int longer = record.kind == WRITE && record.position + record.bytes > (uint64_t)status.st_size;
	if (longer || record.kind == CREATE || record.kind == MKDIR) {
		int error = fails();
		/* Opening what exists needs no space. */
		if (error && record.kind == CREATE && !access(path, F_OK))
			error = 0;
		if (error)
			return error;
	}
	append(&record, path, second, data);
	return 0;
}

static void answer(uint64_t id, int error)
{
	struct seccomp_notif_resp resp = { .id = id, .error = -error };
	if (!error)
		resp.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
	/* Fails when the program was killed meanwhile. */
	ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &resp);
}

struct waiting {
	uint64_t id, due;
};

static void supervise(void)
{
	static struct waiting waiting[4096];
	size_t count = 0;
	struct pollfd ready = { listener, POLLIN, 0 };
	for (;;) {
		int found = poll(&ready, 1, count ? 2 : 1000);
		if (found < 0 && errno != EINTR)
			die("poll");
		if (found > 0 && (ready.revents & POLLIN)) {
			struct seccomp_notif call = { 0 };
			if (!ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call)) {
				int error = decide(&call);
				int waits = control->flush_hangs || control->flush_delay;
				if (error < 0 && waits && count < sizeof waiting / sizeof *waiting)
					waiting[count++] = (struct waiting){ call.id, now() + control->flush_delay * 1000000ull };
				else
					answer(call.id, error < 0 ? 0 : error);
			}
		} else if (found > 0 && (ready.revents & (POLLHUP | POLLERR))) {
			return;
		}
		for (size_t n = 0; n < count;) {
			if (control->flush_hangs || now() < waiting[n].due) {
				n++;
				continue;
			}
			answer(waiting[n].id, control->flush_error);
			waiting[n] = waiting[--count];
		}
	}
}

static void send_fd(int socket, int fd)
{
	char byte = 0;
	union {
		char room[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} aux = { 0 };
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &aux, .msg_controllen = sizeof aux };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof fd);
	if (sendmsg(socket, &message, 0) != 1)
		die("sendmsg");
}

static int receive_fd(int socket)
{
	char byte;
	union {
		char room[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} aux = { 0 };
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &aux, .msg_controllen = sizeof aux };
	int fd;
	if (recvmsg(socket, &message, 0) != 1 || !CMSG_FIRSTHDR(&message))
		exit(70);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
	return fd;
}

static int install(void)
{
	static const int calls[] = {
		SYS_pwritev, SYS_pwritev2, SYS_pwrite64, SYS_ftruncate, SYS_fdatasync, SYS_fsync, SYS_syncfs, SYS_openat, SYS_renameat,
		SYS_renameat2, SYS_unlinkat, SYS_mkdirat,
#ifdef SYS_open
		SYS_open, SYS_rename, SYS_unlink, SYS_rmdir, SYS_mkdir,
#endif
	};
	enum { COUNT = sizeof calls / sizeof *calls };
	struct sock_filter code[COUNT + 6];
	int at = 0;
	/* Opens for reading are by far the most: let them pass at once. */
	code[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 2);
	code[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2]));
	code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_CREAT | O_TRUNC, COUNT + 1, COUNT);
	for (int n = 0; n < COUNT; n++) {
		/* openat was decided above. */
		int nr = calls[n] == SYS_openat ? -1 : calls[n];
		code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr, COUNT - n, 0);
	}
	code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
	struct sock_fprog program = { at, code };
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		die("no_new_privs");
	/* Signals other than SIGKILL do not interrupt a call that the supervisor has taken: it would be seen twice. */
	int fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
			 SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &program);
	if (fd < 0)
		die("seccomp");
	return fd;
}

int main(int argc, char **argv)
{
	if (argc < 5) {
		fprintf(stderr, "usage: supervise CONTROL FOLDER RECORD PROGRAM ARGUMENT...\n");
		return 64;
	}
	int fd = open(argv[1], O_RDWR);
	if (fd < 0)
		die(argv[1]);
	control = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	if (control == MAP_FAILED)
		die("mmap");
	folder = argv[2];
	folder_length = strlen(folder);
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		die("socketpair");
	pid_t child = fork();
	if (child < 0)
		die("fork");
	if (!child) {
		close(pair[0]);
		if (strcmp(argv[3], "-")) {
			record_fd = open(argv[3], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
			if (record_fd < 0)
				die(argv[3]);
		}
		listener = receive_fd(pair[1]);
		/* Not held open after the program has ended: whoever reads its output waits for the end of it. */
		int null = open("/dev/null", O_RDWR);
		dup2(null, 0);
		dup2(null, 1);
		dup2(null, 2);
		signal(SIGTERM, SIG_IGN);
		signal(SIGINT, SIG_IGN);
		if (write(pair[1], "", 1) != 1)
			return 70;
		supervise();
		return 0;
	}
	close(pair[1]);
	int filter = install();
	send_fd(pair[0], filter);
	close(filter);
	char byte;
	if (read(pair[0], &byte, 1) != 1)
		die("the supervisor has ended");
	execv(argv[4], argv + 4);
	die(argv[4]);
}
