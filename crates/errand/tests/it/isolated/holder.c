// Takes memory that belongs to no process, in the way named by the argument, and holds it. Exits with 3 where that way does
// not exist.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static char block[65536];
enum { PROCESSES = 30, EACH = 450 };

// Fills the buffers of a pair of sockets.
static int fill_pair(int pair[2]) {
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair)) return 0;
    for (int side = 0; side < 2; side++)
        while (write(pair[side], block, sizeof block) > 0) {}
    return 1;
}

static void sockets(void) {
    for (int i = 0; i < EACH; i++) { int pair[2]; if (!fill_pair(pair)) break; }
}

// Puts filled sockets on their way through another one, and closes them: no process has them open.
static void sockets_under_way(void) {
    for (int carrier = 0; carrier < 400; carrier++) {
        int way[2];
        if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, way)) return;
        for (;;) {
            int pair[2];
            if (!fill_pair(pair)) return;
            char byte = 0, control[CMSG_SPACE(sizeof pair)];
            struct iovec data = {&byte, 1};
            struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
            struct cmsghdr *header = CMSG_FIRSTHDR(&message);
            header->cmsg_level = SOL_SOCKET;
            header->cmsg_type = SCM_RIGHTS;
            header->cmsg_len = CMSG_LEN(sizeof pair);
            memcpy(CMSG_DATA(header), pair, sizeof pair);
            ssize_t sent = sendmsg(way[0], &message, 0);
            close(pair[0]);
            close(pair[1]);
            if (sent < 0) break;
        }
    }
}

static void pipes(void) {
    for (int i = 0; i < EACH; i++) {
        int ends[2];
        if (pipe2(ends, O_NONBLOCK)) break;
        while (write(ends[1], block, 4096) > 0) {}
    }
}

static void large_buffers(void) {
    for (int i = 0; i < EACH; i++) {
        int pair[2], size = 1 << 30;
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair)) break;
        if (setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size)) exit(3);
        while (write(pair[0], block, sizeof block) > 0) {}
    }
}

static void memory_files(void) {
    for (int i = 0; i < 100; i++) {
        int file = (int)syscall(SYS_memfd_create, "x", 0);
        if (file < 0) exit(3);
        for (int part = 0; part < 256; part++) if (write(file, block, sizeof block) < 0) break;
    }
}

static void shared_memory(void) {
    for (int i = 0; i < 64; i++) {
        int id = shmget(IPC_PRIVATE, 16 << 20, IPC_CREAT | 0600);
        if (id < 0) exit(3);
        char *at = shmat(id, 0, 0);
        memset(at, 1, 16 << 20);
        shmdt(at);
    }
}

static void message_queues(void) {
    for (int i = 0; i < 30000; i++) {
        int id = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
        if (id < 0) exit(3);
        while (msgsnd(id, &(struct { long type; char text[4096]; }){1, ""}, 4096, IPC_NOWAIT) == 0) {}
    }
}

static void semaphores(void) {
    for (int i = 0; i < 32000; i++) if (semget(IPC_PRIVATE, 32000, IPC_CREAT | 0600) < 0) exit(errno == ENOSYS ? 3 : 4);
}

// Reads a page of each 2 MiB of a vast mapping: the page is the same for all, its tables are not.
static void page_tables(void) {
    size_t vast = 1UL << 42;
    char *at = mmap(0, vast, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) exit(3);
    volatile char sum = 0;
    for (size_t i = 0; i < vast; i += 2 << 20) sum += at[i];
}

// So many mappings that their records take more than what is mapped.
static void mappings(void) {
    size_t page = 4096, pages = 64000;
    char *at = mmap(0, pages * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) exit(3);
    for (size_t i = 0; i < pages; i += 2) if (mprotect(at + i * page, page, PROT_READ)) return;
}

int main(int argc, char **argv) {
    static const struct { const char *name; void (*takes)(void); } ways[] = {
        {"sockets", sockets}, {"sockets_under_way", sockets_under_way}, {"pipes", pipes}, {"large_buffers", large_buffers},
        {"memory_files", memory_files}, {"shared_memory", shared_memory}, {"message_queues", message_queues},
        {"semaphores", semaphores}, {"page_tables", page_tables}, {"mappings", mappings},
    };
    for (unsigned i = 0; i < sizeof ways / sizeof *ways; i++) {
        if (argc < 2 || strcmp(argv[1], ways[i].name)) continue;
        for (int p = 1; p < PROCESSES; p++) if (fork() == 0) { ways[i].takes(); sleep(100); _exit(0); }
        ways[i].takes();
        sleep(100);
        return 0;
    }
    return 2;
}
