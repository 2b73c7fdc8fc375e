/*-------------------------------------------------------------------------
 *
 * wire.c
 *	  A link that takes its time, for kernels without tc's netem.
 *
 *	  wire NAMESPACE NAMESPACE MICROSECONDS
 *
 * Makes a tun device "wire" in each of two network namespaces; what is sent into
 * one comes out of the other, MICROSECONDS later.  Returns when the devices are
 * there, and leaves a process behind that does it until it is killed; prints
 * that one's pid.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define NPACKETS 1024
#define MAX_PACKET 2048

typedef struct Packet
{
	int64_t due;
	ssize_t len;
	char data[MAX_PACKET];
} Packet;

/* one direction; the delay is the same for all, so a queue is in order */
typedef struct Direction
{
	int from;
	int to;
	uint32_t head; /* of what waits, the first */
	uint32_t tail; /* behind the last */
	Packet packets[NPACKETS];
} Direction;

static Direction directions[2];

static int64_t
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static int
open_tun(const char *namespace)
{
	struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "/run/netns/%s", namespace);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, CLONE_NEWNET) != 0)
		err(1, "%s", path);
	close(fd);

	strcpy(request.ifr_name, "wire");
	fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &request) != 0)
		err(1, "/dev/net/tun");
	return fd;
}

static bool
is_full(const Direction *d)
{
	return d->tail - d->head == NPACKETS;
}

static void
take(Direction *d, int64_t delay)
{
	while (!is_full(d))
	{
		Packet *p = &d->packets[d->tail % NPACKETS];

		p->len = read(d->from, p->data, MAX_PACKET);
		if (p->len < 0 && errno == EAGAIN)
			return;
		if (p->len < 0)
			err(1, "read");
		p->due = now() + delay;
		d->tail++;
	}
}

/* When is the next one due? */
static int64_t
deliver(Direction *d)
{
	for (; d->head != d->tail; d->head++)
	{
		Packet *p = &d->packets[d->head % NPACKETS];

		if (p->due > now())
			return p->due;
		/* a device that is down or full loses it, as wires do */
		(void) !write(d->to, p->data, p->len);
	}
	return INT64_MAX;
}

static void
forward(int64_t delay)
{
	for (;;)
	{
		int64_t due = INT64_MAX;
		int64_t left;
		struct timespec t;
		struct pollfd fds[2];

		for (int i = 0; i < 2; i++)
		{
			int64_t d;

			take(&directions[i], delay);
			d = deliver(&directions[i]);
			due = d < due ? d : due;
			fds[i].fd = directions[i].from;
			fds[i].events = is_full(&directions[i]) ? 0 : POLLIN;
		}
		left = due - now();
		left = left < 0 ? 0 : left;
		t.tv_sec = left / 1000000000;
		t.tv_nsec = left % 1000000000;
		if (ppoll(fds, 2, due == INT64_MAX ? NULL : &t, NULL) < 0 && errno != EINTR)
			err(1, "poll");
	}
}

int
main(int argc, char **argv)
{
	int64_t delay;
	pid_t pid;

	if (argc != 4 || (delay = atoll(argv[3]) * 1000) <= 0)
		errx(2, "usage: wire NAMESPACE NAMESPACE MICROSECONDS");
	directions[0].from = directions[1].to = open_tun(argv[1]);
	directions[1].from = directions[0].to = open_tun(argv[2]);
	prctl(PR_SET_TIMERSLACK, 1);

	pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (pid > 0)
	{
		printf("%d\n", (int) pid);
		return 0;
	}
	fclose(stdout); /* a reader may wait for its end */
	forward(delay);
}
