// What hostile code would try. Each action is tried in a process of its own, and says whether it succeeded: one line
// "NAME yes|no DETAIL". Inside the sandbox none may; run without isolation, those that can must, which shows that the
// checks see what they are meant to see. Nothing here does lasting harm where it succeeds.
//
// Usage: hostile CONFIG, a file of lines "NAME VALUE".
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char data[512], abstract_name[128], unix_path[512], canary[128], shm_file[256], tmp_file[512];
static int server, port;
static char detail[256];

static int can(int result) { snprintf(detail, sizeof detail, "%s", result < 0 ? strerror(errno) : ""); return result >= 0; }
// A privileged call with arguments that are wrong: whoever may make it hears what is wrong, others that they may not.
static int refused_for_its_arguments(long result) {
    snprintf(detail, sizeof detail, "%s", strerror(errno));
    return result >= 0 || (errno != EPERM && errno != ENOSYS && errno != EACCES);
}
static int can_open(const char *path, int flags) {
    int fd = open(path, flags | O_NONBLOCK | O_NOCTTY);
    return can(fd);
}
static int can_create(const char *path) {
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    int ok = can(fd);
    if (ok) unlink(path);
    return ok;
}
static int can_list(const char *path) {
    DIR *dir = opendir(path);
    return can(dir ? 0 : -1);
}
static const char *in_data(const char *name) { static char path[1024]; snprintf(path, sizeof path, "%s/%s", data, name); return path; }
static const char *of_server(const char *name) { static char path[128]; snprintf(path, sizeof path, "/proc/%d/%s", server, name); return path; }
// Whether a file of some process contains a text; `skip_self` leaves out this program.
static int in_any_process(const char *name, const char *text) {
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    static char buffer[1 << 16];
    size_t length = strlen(text);
    while (proc && (entry = readdir(proc))) {
        int pid = atoi(entry->d_name);
        if (pid <= 0) continue;
        char path[512];
        snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
        int fd = open(path, O_RDONLY);
        if (fd < 0) continue;
        ssize_t read_bytes = read(fd, buffer, sizeof buffer);
        close(fd);
        for (ssize_t i = 0; i + (ssize_t)length <= read_bytes; i++)
            if (!memcmp(buffer + i, text, length)) { snprintf(detail, sizeof detail, "process %d", pid); return 1; }
    }
    return 0;
}
static int any_descriptor_of_data(void) {
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    while (proc && (entry = readdir(proc))) {
        int pid = atoi(entry->d_name);
        if (pid <= 0 || pid == getpid()) continue;
        char path[600], link[1024];
        snprintf(path, sizeof path, "/proc/%d/fd", pid);
        DIR *fds = opendir(path);
        struct dirent *fd;
        while (fds && (fd = readdir(fds))) {
            snprintf(path, sizeof path, "/proc/%d/fd/%s", pid, fd->d_name);
            ssize_t length = readlink(path, link, sizeof link - 1);
            if (length <= 0) continue;
            link[length] = 0;
            if (strstr(link, data)) { snprintf(detail, sizeof detail, "%s", path); return 1; }
        }
        if (fds) closedir(fds);
    }
    return 0;
}
static int tcp(int family, const char *address) {
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, address, &v4.sin_addr);
    int result = connect(fd, (void *)&v4, sizeof v4);
    if (result < 0 && errno == EINPROGRESS) {
        usleep(200000);
        int error = 0;
        socklen_t length = sizeof error;
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
        errno = error;
        result = error ? -1 : 0;
    }
    return can(result);
}
// Whether there is a way to an address. Nothing is sent.
static int route(const char *address) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(80)};
    inet_pton(AF_INET, address, &v4.sin_addr);
    return can(connect(fd, (void *)&v4, sizeof v4));
}
static int connect_unix(const char *name, int is_abstract) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path + is_abstract, sizeof address.sun_path - 1, "%s", name);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    socklen_t length = sizeof(sa_family_t) + is_abstract + strlen(name);
    return can(connect(fd, (void *)&address, is_abstract ? length : sizeof address));
}
static int other_interface(void) {
    struct if_nameindex *all = if_nameindex();
    for (; all && all->if_index; all++)
        if (strcmp(all->if_name, "lo")) { snprintf(detail, sizeof detail, "%s", all->if_name); return 1; }
    return 0;
}
static int status_field(const char *name) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    unsigned long long value = 0;
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, name, strlen(name))) sscanf(line + strlen(name), ":%llx", &value);
    return value != 0;
}
static int raise_limit(int resource, rlim_t to) { struct rlimit limit = {to, to}; return can(setrlimit(resource, &limit)); }
static int in_new_thread(void *unused) { (void)unused; return 0; }
static int clone_with(unsigned long flags) {
    static char stack[65536];
    int pid = clone(in_new_thread, stack + sizeof stack, flags | SIGCHLD, 0);
    int ok = can(pid);
    if (ok) waitpid(pid, 0, 0);
    return ok;
}
static int stray_descriptors(void) {
    for (int fd = 3; fd < 1024; fd++) {
        char path[64], link[512];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(path, link, sizeof link - 1);
        if (length > 0) { link[length] = 0; snprintf(detail, sizeof detail, "%d: %.200s", fd, link); return 1; }
    }
    return 0;
}
static int typed_into_a_terminal(void) {
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) || unlockpt(master)) return can(-1);
    setsid();
    int slave = open(ptsname(master), O_RDWR);
    return can(ioctl(slave, TIOCSTI, "x"));
}
static int entered_by_32_bits(void) {
#ifdef __x86_64__
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory");
    return result > 0;
#else
    return 0;
#endif
}
static int read_memory_of(int pid) {
    char byte;
    static char ours[8];
    struct iovec local = {ours, 8}, remote = {&byte, 1};
    remote.iov_base = (void *)&in_new_thread;
    remote.iov_len = 8;
    return can(process_vm_readv(pid, &local, 1, &remote, 1, 0)) || errno == EFAULT;
}
static int handle_of_a_file(void) {
    struct { struct file_handle handle; char room[128]; } at;
    memset(&at, 0, sizeof at);
    at.handle.handle_bytes = 128;
    int mount;
    return can(name_to_handle_at(AT_FDCWD, ".", &at.handle, &mount, 0));
}
static int linked_out(void) {
    unlink("hostile-link");
    if (symlink(in_data("master.key"), "hostile-link")) return 0;
    int ok = can_open("hostile-link", O_RDONLY);
    unlink("hostile-link");
    return ok;
}
static int hard_linked_out(void) {
    unlink("hostile-hard");
    int ok = can(link(in_data("master.key"), "hostile-hard"));
    unlink("hostile-hard");
    return ok;
}
static int set_uid_file(void) {
    int fd = open("hostile-suid", O_CREAT | O_WRONLY, 0700);
    int ok = can(fchmod(fd, 04700));
    unlink("hostile-suid");
    return ok;
}
// The bit that makes a program run as its owner, set where the file is made.
static int set_uid_at_once(int how) {
    const char *file = "hostile-suid";
    struct { unsigned long long flags, mode, resolve; } asks = {O_CREAT | O_WRONLY, 04700, 0};
    int fd = -1;
    unlink(file);
    switch (how) {
    case 0: fd = open(file, O_CREAT | O_WRONLY, 04700); break;
    case 1: fd = creat(file, 04700); break;
    case 2: fd = syscall(437 /* openat2 */, AT_FDCWD, file, &asks, sizeof asks); break;
    case 3: mknod(file, S_IFREG | 04700, 0); break;
    case 4: fd = open(".", O_TMPFILE | O_WRONLY, 02700); break;
    }
    struct stat made;
    int there = fd >= 0 ? fstat(fd, &made) : stat(file, &made);
    if (fd >= 0) close(fd);
    unlink(file);
    return there == 0 && (made.st_mode & 06000) != 0;
}
static int device_node(void) {
    unlink("hostile-device");
    int ok = can(mknod("hostile-device", S_IFCHR | 0600, 0x103));
    unlink("hostile-device");
    return ok;
}
static int room_at_once(void) {
    int fd = open("hostile-room", O_CREAT | O_RDWR, 0600);
    int ok = can(syscall(SYS_fallocate, fd, 0, 0L, 65536L));
    unlink("hostile-room");
    return ok;
}
static int leased(int kind) {
    int fd = open("hostile-leased", O_CREAT | O_RDWR, 0600);
    if (kind == F_RDLCK) { close(fd); fd = open("hostile-leased", O_RDONLY); }
    int ok = can(fcntl(fd, F_SETLEASE, kind));
    unlink("hostile-leased");
    return ok;
}
static int asynchronous_io(void) { unsigned long context = 0; return can(syscall(SYS_io_setup, 1, &context)); }
static int adjusted_clock(void) { struct timex at = {.modes = 0}; return can(adjtimex(&at)); }
static int lowered_oom(void) {
    int fd = open("/proc/self/oom_score_adj", O_WRONLY);
    return can(fd < 0 ? -1 : (int)write(fd, "-900", 4));
}
static int chrooted(void) { return can(chroot(".")); }
static int pid1_root(void) { char path[700]; snprintf(path, sizeof path, "/proc/%d/root%s/master.key", getppid() == 0 ? 1 : 1, data); return can_open(path, O_RDONLY); }
static int server_root(void) { char path[700]; snprintf(path, sizeof path, "/proc/%d/root%s/master.key", server, data); return can_open(path, O_RDONLY); }
static int up_and_out(void) {
    static const char *ups[] = {"../master.key", "../../master.key", "../../../master.key", "/workspace/../master.key"};
    for (unsigned i = 0; i < sizeof ups / sizeof *ups; i++) if (can_open(ups[i], O_RDONLY)) return 1;
    return 0;
}
static int block_device(void) {
    static const char *disks[] = {"/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/mem", "/dev/kmsg", "/dev/fuse", "/dev/kvm", "/dev/net/tun"};
    for (unsigned i = 0; i < sizeof disks / sizeof *disks; i++) if (can_open(disks[i], O_RDONLY)) { snprintf(detail, sizeof detail, "%s", disks[i]); return 1; }
    return 0;
}
static int own_environment(void) { return getenv("HOSTILE_CANARY") != 0; }
static int real_time(void) { struct sched_param p = {.sched_priority = 1}; return can(sched_setscheduler(0, SCHED_FIFO, &p)); }

struct action { const char *name; char control; int (*does)(void); };
// control: what it comes to without isolation. 'a' succeeds for everybody, 'r' for root, 'm' depends on the machine.
#define DO(name, control, expression) static int do_##name(void) { return (expression); }
#define ACTIONS(X) \
 X(read_database, 'a', can_open(in_data("errand.db"), O_RDONLY)) \
 X(write_database, 'a', can_open(in_data("errand.db"), O_WRONLY)) \
 X(list_data_directory, 'a', can_list(data)) \
 X(read_master_key, 'a', can_open(in_data("master.key"), O_RDONLY)) \
 X(read_other_sandbox, 'a', can_open(in_data("sandboxes/other/secret"), O_RDONLY)) \
 X(write_other_sandbox, 'a', can_create(in_data("sandboxes/other/planted"))) \
 X(read_by_root_of_first, 'm', pid1_root()) \
 X(read_by_root_of_server, 'a', server_root()) \
 X(read_upwards, 'a', up_and_out()) \
 X(read_by_link, 'a', linked_out()) \
 X(hard_link_out, 'a', hard_linked_out()) \
 X(read_shadow, 'r', can_open("/etc/shadow", O_RDONLY)) \
 X(list_home_of_root, 'r', can_list("/root")) \
 X(list_var_lib, 'a', can_list("/var/lib")) \
 X(write_usr, 'r', can_create("/usr/hostile-planted")) \
 X(write_usr_bin, 'r', can_create("/usr/bin/hostile-planted")) \
 X(write_etc, 'r', can_create("/etc/hostile-planted")) \
 X(write_topmost, 'r', can_create("/hostile-planted")) \
 X(write_dev, 'r', can_create("/dev/hostile-planted")) \
 X(write_core_pattern, 'r', can_open("/proc/sys/kernel/core_pattern", O_WRONLY)) \
 X(write_modprobe, 'm', can_open("/proc/sys/kernel/modprobe", O_WRONLY)) \
 X(write_sysrq, 'm', can_open("/proc/sysrq-trigger", O_WRONLY)) \
 X(write_hostname, 'r', can_open("/proc/sys/kernel/hostname", O_WRONLY)) \
 X(write_max_userns, 'm', can_open("/proc/sys/user/max_user_namespaces", O_WRONLY)) \
 X(read_kcore, 'm', can_open("/proc/kcore", O_RDONLY)) \
 X(list_sys, 'a', can_list("/sys/kernel")) \
 X(list_cgroups, 'a', can_list("/sys/fs/cgroup")) \
 X(open_block_device, 'm', block_device()) \
 X(make_device, 'r', device_node()) \
 X(see_host_tmp, 'a', can_open(tmp_file, O_RDONLY)) \
 X(see_host_shm, 'a', can_open(shm_file, O_RDONLY)) \
 X(environment_of_others, 'a', in_any_process("environ", canary)) \
 X(environment_of_own, 'a', own_environment()) \
 X(arguments_of_others, 'a', in_any_process("cmdline", canary)) \
 X(inherited_descriptors, 'a', stray_descriptors()) \
 X(descriptors_of_others, 'a', any_descriptor_of_data()) \
 X(open_memory_of_server, 'r', can_open(of_server("mem"), O_RDONLY)) \
 X(read_memory_of_server, 'r', read_memory_of(server)) \
 X(trace_server, 'm', can(ptrace(PTRACE_SEIZE, server, 0, 0))) \
 X(trace_own_child, 'a', can(ptrace(PTRACE_TRACEME, 0, 0, 0))) \
 X(hold_server, 'a', can(syscall(SYS_pidfd_open, server, 0))) \
 X(compare_with_server, 'm', can(syscall(SYS_kcmp, getpid(), server, 0, 0, 0))) \
 X(signal_server, 'a', can(kill(server, 0))) \
 X(limit_server, 'a', can(prlimit(server, RLIMIT_NOFILE, 0, &(struct rlimit){0}))) \
 X(priority_of_server, 'a', can(getpriority(PRIO_PROCESS, server) == -1 && errno ? -1 : 0)) \
 X(tcp_of_host, 'a', tcp(AF_INET, "127.0.0.1")) \
 X(abstract_socket_of_host, 'a', connect_unix(abstract_name, 1)) \
 X(socket_file_of_host, 'a', connect_unix(unix_path, 0)) \
 X(route_to_metadata, 'm', route("169.254.169.254")) \
 X(route_to_world, 'm', route("192.0.2.1")) \
 X(route_to_neighbours, 'm', route("10.0.0.1")) \
 X(interfaces_of_host, 'm', other_interface()) \
 X(socket_vsock, 'm', can(socket(40, SOCK_STREAM, 0))) \
 X(socket_packet, 'r', can(socket(AF_PACKET, SOCK_RAW, 0))) \
 X(socket_raw, 'r', can(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP))) \
 X(socket_alg, 'm', can(socket(38, SOCK_SEQPACKET, 0))) \
 X(socket_netfilter, 'm', can(socket(AF_NETLINK, SOCK_RAW, 12))) \
 X(socket_uevent, 'a', can(socket(AF_NETLINK, SOCK_RAW, 15))) \
 X(socket_audit, 'm', can(socket(AF_NETLINK, SOCK_RAW, 9))) \
 X(socket_xdp, 'm', can(socket(44, SOCK_RAW, 0))) \
 X(mount_tmpfs, 'r', can(mount("none", "/tmp", "tmpfs", 0, 0))) \
 X(mount_proc, 'r', can(mount("none", "/tmp", "proc", 0, 0))) \
 X(bind_mount, 'r', can(mount("/usr", "/tmp", 0, MS_BIND, 0))) \
 X(remount_usr, 'm', can(mount(0, "/usr", 0, MS_REMOUNT | MS_BIND, 0))) \
 X(unmount_proc, 'r', can(umount2("/proc", MNT_DETACH))) \
 X(new_mount_api, 'r', can(syscall(SYS_fsopen, "tmpfs", 0))) \
 X(clone_a_mount_tree, 'r', can(syscall(SYS_open_tree, AT_FDCWD, "/", 1))) \
 X(change_root, 'r', chrooted()) \
 X(pivot_root, 'r', refused_for_its_arguments(syscall(SYS_pivot_root, ".", "."))) \
 X(new_user_namespace, 'm', can(unshare(CLONE_NEWUSER))) \
 X(new_net_namespace, 'r', can(unshare(CLONE_NEWNET))) \
 X(new_mount_namespace, 'r', can(unshare(CLONE_NEWNS))) \
 X(clone_user_namespace, 'm', clone_with(CLONE_NEWUSER)) \
 X(clone_pid_namespace, 'r', clone_with(CLONE_NEWPID)) \
 X(enter_namespace_of_first, 'm', can(setns(open("/proc/1/ns/mnt", O_RDONLY), 0))) \
 X(enter_namespace_of_server, 'r', can(setns(open(of_server("ns/net"), O_RDONLY), 0))) \
 X(session_keyring, 'm', can(syscall(SYS_keyctl, 0, -3, 1))) \
 X(user_keyring, 'm', can(syscall(SYS_keyctl, 0, -4, 1))) \
 X(add_key, 'm', can(syscall(SYS_add_key, "user", "hostile", "x", 1, -4))) \
 X(io_uring, 'm', refused_for_its_arguments(syscall(SYS_io_uring_setup, 1, 0))) \
 X(asynchronous_io, 'a', asynchronous_io()) \
 X(write_lease, 'a', leased(F_WRLCK)) \
 X(read_lease, 'a', leased(F_RDLCK)) \
 X(userfaultfd, 'm', can(syscall(SYS_userfaultfd, 1))) \
 X(perf_events, 'm', refused_for_its_arguments(syscall(SYS_perf_event_open, 0, 0, -1, -1, 0))) \
 X(bpf, 'm', refused_for_its_arguments(syscall(SYS_bpf, 0, 0, 0))) \
 X(secret_memory, 'm', can(syscall(447, 0))) \
 X(load_module, 'm', refused_for_its_arguments(syscall(SYS_init_module, "", 0, ""))) \
 X(load_kernel, 'm', refused_for_its_arguments(syscall(SYS_kexec_load, 0, 1, 0, 0x7fffffffUL))) \
 X(reboot, 'r', refused_for_its_arguments(syscall(SYS_reboot, 0, 0, 0, 0))) \
 X(swap, 'r', refused_for_its_arguments(syscall(SYS_swapon, "/nonexistent", 0))) \
 X(accounting, 'm', refused_for_its_arguments(syscall(SYS_acct, "/nonexistent"))) \
 X(kernel_log, 'r', can(syscall(SYS_syslog, 10, 0, 0))) \
 X(adjust_clock, 'a', adjusted_clock()) \
 X(file_by_handle, 'a', handle_of_a_file()) \
 X(open_by_handle, 'm', refused_for_its_arguments(syscall(SYS_open_by_handle_at, AT_FDCWD, 0, 0))) \
 X(fanotify, 'r', can(syscall(SYS_fanotify_init, 0, 0))) \
 X(unknown_system_call, 'm', refused_for_its_arguments(syscall(467, -1, 0, 0, 0, 0))) \
 X(entry_by_32_bits, 'm', entered_by_32_bits()) \
 X(type_into_a_terminal, 'm', typed_into_a_terminal()) \
 X(controlling_terminal, 'm', can_open("/dev/tty", O_RDWR)) \
 X(set_uid_file, 'a', set_uid_file()) \
 X(set_uid_by_open, 'a', set_uid_at_once(0)) \
 X(set_uid_by_creat, 'a', set_uid_at_once(1)) \
 X(set_uid_by_openat2, 'm', set_uid_at_once(2)) \
 X(set_uid_by_mknod, 'a', set_uid_at_once(3)) \
 X(set_uid_by_tmpfile, 'm', set_uid_at_once(4)) \
 X(become_root, 'r', can(setuid(0))) \
 X(gain_privileges, 'a', prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0) \
 X(effective_capabilities, 'r', status_field("CapEff")) \
 X(bounding_capabilities, 'a', status_field("CapBnd")) \
 X(unfiltered, 'a', prctl(PR_GET_SECCOMP, 0, 0, 0, 0) == 0) \
 X(core_dumps, 'a', raise_limit(RLIMIT_CORE, 4096)) \
 X(more_descriptors, 'm', raise_limit(RLIMIT_NOFILE, 4096)) \
 X(larger_files, 'm', raise_limit(RLIMIT_FSIZE, RLIM_INFINITY)) \
 X(more_processes, 'm', raise_limit(RLIMIT_NPROC, RLIM_INFINITY)) \
 X(room_at_once, 'a', room_at_once()) \
 X(higher_priority, 'r', can(setpriority(PRIO_PROCESS, 0, -10))) \
 X(real_time, 'r', real_time()) \
 X(survive_the_others, 'm', lowered_oom())
#define DEFINE(name, control, expression) DO(name, control, expression)
ACTIONS(DEFINE)
#define LINE(name, control, expression) {#name, control, do_##name},
static const struct action actions[] = {ACTIONS(LINE)};

int main(int argc, char **argv) {
    FILE *config = argc > 1 ? fopen(argv[1], "r") : 0;
    char name[64], value[512];
    if (!config) return 2;
    while (fscanf(config, "%63s %511s", name, value) == 2) {
        if (!strcmp(name, "data")) strcpy(data, value);
        if (!strcmp(name, "server")) server = atoi(value);
        if (!strcmp(name, "port")) port = atoi(value);
        if (!strcmp(name, "abstract")) strncpy(abstract_name, value, sizeof abstract_name - 1);
        if (!strcmp(name, "unix")) strcpy(unix_path, value);
        if (!strcmp(name, "canary")) strncpy(canary, value, sizeof canary - 1);
        if (!strcmp(name, "shm")) strncpy(shm_file, value, sizeof shm_file - 1);
        if (!strcmp(name, "tmp")) strcpy(tmp_file, value);
    }
    fclose(config);
    setvbuf(stdout, 0, _IONBF, 0);
    for (unsigned i = 0; i < sizeof actions / sizeof *actions; i++) {
        int pid = fork();
        if (pid == 0) {
            // Mounts that succeed are for this process alone.
            if (getuid() == 0 && getenv("HOSTILE_CONTROL")) { unshare(CLONE_NEWNS); mount(0, "/", 0, MS_REC | MS_PRIVATE, 0); }
            alarm(10);
            errno = 0;
            int succeeded = actions[i].does();
            printf("%s %c %s %s\n", actions[i].name, actions[i].control, succeeded ? "yes" : "no", detail);
            _exit(0);
        }
        int status = 0;
        waitpid(pid, &status, 0);
        if (WIFSIGNALED(status)) printf("%s %c no killed by signal %d\n", actions[i].name, actions[i].control, WTERMSIG(status));
    }
    return 0;
}
