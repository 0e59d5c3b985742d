//! The filter of system calls for what runs inside. Namespaces do not cover what it refuses: keyrings, `io_uring`,
//! vsock, and calls that inside could only serve to break out or to reach a large part of the kernel.
//!
//! A refused call fails with an error instead of ending the process, so that programs that merely try it keep
//! running. A call through the 32-bit entry ends its process.

use std::collections::BTreeMap;
use std::io;

use super::cgroup::Keeper;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// The first call number that was not reviewed. Newer calls, and the numbers of the x32 ABI, fail with `ENOSYS`.
const UNKNOWN_FROM: u32 = 463;

/// Calls that are refused with `EPERM`, regardless of their arguments.
const REFUSED: &[i64] = &[
    // Mounts, through the old and the new interface, and other roots.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // Namespaces.
    libc::SYS_setns,
    libc::SYS_unshare,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    PIDFD_GETFD,
    // Keyrings: they belong to the user, not to a namespace.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // Large parts of the kernel.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_fanotify_init,
    // The machine.
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_syslog,
    libc::SYS_quotactl,
    QUOTACTL_FD,
    libc::SYS_vhangup,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    // Access to files by handle, which bypasses every path.
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_lookup_dcookie,
];

#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[i64] = &[
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_kexec_file_load,
    libc::SYS_uselib,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[i64] = &[libc::SYS_kexec_file_load];

/// Calls that fail with `ENOSYS`. Programs have a fallback for each of them.
const MISSING: &[i64] = &[
    libc::SYS_clone3,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    MEMFD_SECRET,
    // Its mode argument is in memory, where a filter cannot read it.
    libc::SYS_openat2,
    // Asynchronous I/O requests count against one limit of the whole machine (fs.aio-max-nr).
    libc::SYS_io_setup,
];

/// Calls that fail with `ENOSYS` if no cgroup counts the memory of a command. Each holds kernel memory that belongs
/// to no process, so the watcher cannot see it.
const UNCOUNTED: &[i64] = &[libc::SYS_memfd_create, libc::SYS_semget, libc::SYS_msgget];
/// Maximum size of a System V shared memory segment if no cgroup counts memory. There are at most 4,096 segments
/// (kernel.shmmni), so together they hold at most 64 MiB. PostgreSQL needs one of 56 bytes.
const UNCOUNTED_SHM_BYTES_MAX: u64 = 16 << 10;

// Call numbers that are the same on every architecture, but that `libc` does not define everywhere.
const PIDFD_GETFD: i64 = 438;
const QUOTACTL_FD: i64 = 443;
const MEMFD_SECRET: i64 = 447;
const FCHMODAT2: i64 = 452;

/// All namespace flags of `clone`: time, mount, cgroup, uts, ipc, user, pid, net.
const CLONE_NEW: u64 = 0x7e02_0080;

/// Terminal requests that inject input, as if somebody else had typed it.
const IOCTLS: [u64; 2] = [
    0x5412, // TIOCSTI
    0x541c, // TIOCLINUX
];

/// `fcntl(F_SETLEASE)`: a lease blocks everyone who opens the file, including the server.
const SET_LEASE: u64 = 1024;
/// The first `fcntl` command that was not reviewed. Newer ones include leases under another name.
const FCNTL_UNKNOWN_FROM: u64 = 1039;

/// `setsockopt` level and options that enlarge the buffers of a socket (asm-generic/socket.h).
const SOCKET_LEVEL: u64 = 1;
const BUFFER_SIZES: [u64; 4] = [
    7,  // SO_SNDBUF
    8,  // SO_RCVBUF
    32, // SO_SNDBUFFORCE
    33, // SO_RCVBUFFORCE
];

/// Allowed socket families: unix, IPv4, and IPv6. Netlink is allowed for routes only. No vsock, packet or other
/// sockets.
const FAMILIES: [u64; 3] = [1, 2, 10];
const NETLINK: u64 = 16;

/// Mode bits that make a program run as its owner or group.
const SET_ID: u64 = 0o6000;
/// A mode bit that only character and block devices have, among the file types that `mknod` can create.
const DEVICE: u64 = 0o020_000;
/// Flags of `open` that can create a file: `O_CREAT`, and the bit specific to `O_TMPFILE`. Without them, the mode
/// argument is ignored and may be anything.
const CREATES_FILE: u64 = 0o100 | 0o20_000_000;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;
/// One BPF instruction, in the order of `struct sock_filter`: code, jump if true, jump if false, constant.
type Instruction = (u16, u8, u8, u32);

// Opcodes of classic BPF, and return values of a filter (linux/bpf_common.h, linux/seccomp.h).
const LOAD: u16 = 0x20; // the 32 bits at an offset of `struct seccomp_data`
const JUMP: u16 = 0x05;
const AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
/// Offset of the call number in `struct seccomp_data`.
const NUMBER: u32 = 0;

/// How a call is decided.
enum Rule {
    /// Fails with this error.
    Refused(i32),
    /// Allowed if all tests of at least one row hold; otherwise refused.
    Unless(Vec<Vec<Test>>),
}

/// A test of an argument, given by its index. The kernel reads these arguments as 32 bits and ignores the upper half.
#[derive(Clone, Copy)]
enum Test {
    Is(u8, u64),
    IsNot(u8, u64),
    /// None of these bits is set.
    HasNone(u8, u64),
    /// Less than the value, as an unsigned number.
    Below(u8, u64),
    /// At most the value, compared with all 64 bits.
    AtMostWhole(u8, u64),
}

/// The program for all call numbers from `from` up to the next segment.
struct Segment {
    from: u32,
    program: Vec<Instruction>,
}

/// Builds the filter in the kernel's binary format.
///
/// When a filter is installed, the kernel compiles it and evaluates it for every call number; bubblewrap installs it
/// twice. To keep that fast, the filter is a binary search tree over the call numbers instead of a linear list.
///
/// `memory`: what limits the memory of the processes inside. Without a cgroup, calls that hold memory where the
/// watcher cannot see it are refused too.
///
/// # Errors
/// If the machine's architecture is not supported.
pub(super) fn filter(memory: Keeper) -> io::Result<Vec<u8>> {
    let arch = std::env::consts::ARCH
        .try_into()
        .map_err(|_| io::Error::other("system calls of this architecture cannot be filtered"))?;
    // With no rules, the library's program checks only the architecture. Its last instruction refuses everything
    // else, so it is dropped and the tree follows instead.
    let mut program = compile(arch, Rules::new())?;
    program.pop();
    program.push((LOAD, 0, 0, NUMBER));
    program.extend(tree(&segments(arch, memory)?)?);
    Ok(bytes_of(&program))
}

/// All segments, in ascending order.
fn segments(arch: TargetArch, memory: Keeper) -> io::Result<Vec<Segment>> {
    let allowed = || vec![(RETURN, 0, 0, ALLOW)];
    let refused = |errno: i32| vec![(RETURN, 0, 0, ERRNO | errno.unsigned_abs())];
    let mut segments = vec![Segment {
        from: 0,
        program: allowed(),
    }];
    for (call, rule) in rules(memory) {
        let from = u32::try_from(call).map_err(io::Error::other)?;
        let program = match rule {
            Rule::Refused(errno) => refused(errno),
            Rule::Unless(allowed) => {
                compile(arch, Rules::from([(call, to_library_rules(&allowed)?)]))?
            }
        };
        // Drop the allowing segment between two adjacent calls, which would be empty.
        segments.pop_if(|last| last.from == from);
        segments.push(Segment { from, program });
        segments.push(Segment {
            from: from + 1,
            program: allowed(),
        });
    }
    segments.push(Segment {
        from: UNKNOWN_FROM,
        program: refused(libc::ENOSYS),
    });
    segments.dedup_by(|next, kept| next.program == kept.program);
    Ok(segments)
}

/// Builds the search tree that jumps from the loaded call number to the program of its segment.
fn tree(segments: &[Segment]) -> io::Result<Vec<Instruction>> {
    let (lower, upper) = segments.split_at(segments.len() / 2);
    let ([_, ..], [middle, ..]) = (lower, upper) else {
        let one = upper.iter().flat_map(|segment| &segment.program);
        return Ok(one.copied().collect());
    };
    let (lower, upper) = (tree(lower)?, tree(upper)?);
    let mut program = match u8::try_from(lower.len()) {
        Ok(past) => vec![(AT_LEAST, past, 0, middle.from)],
        Err(_) => {
            let past = u32::try_from(lower.len()).map_err(io::Error::other)?;
            vec![(AT_LEAST, 0, 1, middle.from), (JUMP, 0, 0, past)]
        }
    };
    program.extend(lower);
    program.extend(upper);
    Ok(program)
}

/// Compiles rules with the library. The program refuses everything but the calls in `allowed` for which a rule holds.
fn compile(arch: TargetArch, allowed: Rules) -> io::Result<Vec<Instruction>> {
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let program: BpfProgram = SeccompFilter::new(allowed, refused, SeccompAction::Allow, arch)
        .and_then(TryInto::try_into)
        .map_err(io::Error::other)?;
    Ok(program.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect())
}

/// Converts rows of tests to the library's rules.
fn to_library_rules(rows: &[Vec<Test>]) -> io::Result<Vec<SeccompRule>> {
    let condition = |test: &Test| {
        let low = SeccompCmpArgLen::Dword;
        let (arg, length, op, value) = match *test {
            Test::Is(arg, value) => (arg, low, SeccompCmpOp::Eq, value),
            Test::IsNot(arg, value) => (arg, low, SeccompCmpOp::Ne, value),
            Test::HasNone(arg, bits) => (arg, low, SeccompCmpOp::MaskedEq(bits), 0),
            Test::Below(arg, value) => (arg, low, SeccompCmpOp::Lt, value),
            Test::AtMostWhole(arg, value) => {
                (arg, SeccompCmpArgLen::Qword, SeccompCmpOp::Le, value)
            }
        };
        SeccompCondition::new(arg, length, op, value)
    };
    let rule =
        |row: &Vec<Test>| SeccompRule::new(row.iter().map(condition).collect::<Result<_, _>>()?);
    let rules: Result<Vec<_>, _> = rows.iter().map(rule).collect();
    rules.map_err(io::Error::other)
}

/// The rule for every call that is not simply allowed.
fn rules(memory: Keeper) -> BTreeMap<i64, Rule> {
    use Test::{AtMostWhole, Below, HasNone, Is, IsNot};
    let refused =
        |calls: &'static [i64], errno| calls.iter().map(move |call| (*call, Rule::Refused(errno)));
    let families = FAMILIES.map(|family| vec![Is(0, family)]);
    let routes = vec![Is(0, NETLINK), Is(2, 0)];
    let no_typing = IOCTLS.map(|request| IsNot(1, request)).to_vec();
    let no_set_id = |mode| vec![vec![HasNone(mode, SET_ID)]];
    let no_device = |mode| vec![vec![HasNone(mode, SET_ID | DEVICE)]];
    let no_set_id_if_created = |flags, mode| {
        vec![
            vec![HasNone(flags, CREATES_FILE)],
            vec![HasNone(mode, SET_ID)],
        ]
    };
    let unless = [
        (libc::SYS_clone, vec![vec![HasNone(0, CLONE_NEW)]]),
        (libc::SYS_ioctl, vec![no_typing]),
        (
            libc::SYS_fcntl,
            vec![vec![IsNot(1, SET_LEASE), Below(1, FCNTL_UNKNOWN_FROM)]],
        ),
        (
            libc::SYS_socket,
            families.into_iter().chain([routes]).collect(),
        ),
        (libc::SYS_fchmod, no_set_id(1)),
        (libc::SYS_fchmodat, no_set_id(2)),
        (FCHMODAT2, no_set_id(2)),
        (libc::SYS_mknodat, no_device(2)),
        (libc::SYS_openat, no_set_id_if_created(2, 3)),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_chmod, no_set_id(1)),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_creat, no_set_id(1)),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_mknod, no_device(1)),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, no_set_id_if_created(1, 2)),
    ];
    let buffers = BUFFER_SIZES.map(|name| IsNot(2, name)).to_vec();
    let unless_counted = [
        (
            libc::SYS_setsockopt,
            vec![vec![IsNot(1, SOCKET_LEVEL)], buffers],
        ),
        (
            libc::SYS_shmget,
            vec![vec![AtMostWhole(1, UNCOUNTED_SHM_BYTES_MAX)]],
        ),
    ];
    let is_uncounted = memory == Keeper::Watcher;
    let uncounted = if is_uncounted { UNCOUNTED } else { &[] };
    refused(REFUSED, libc::EPERM)
        .chain(refused(REFUSED_HERE, libc::EPERM))
        .chain(refused(MISSING, libc::ENOSYS))
        // Without fallocate, growing a file takes as long as writing it, so the watcher notices in time.
        .chain(refused(&[libc::SYS_fallocate], libc::EOPNOTSUPP))
        .chain(refused(uncounted, libc::ENOSYS))
        .chain(
            unless
                .into_iter()
                .chain(unless_counted.into_iter().filter(|_| is_uncounted))
                .map(|(call, rows)| (call, Rule::Unless(rows))),
        )
        .collect()
}

/// Serializes the program as an array of `struct sock_filter`.
fn bytes_of(program: &[Instruction]) -> Vec<u8> {
    program
        .iter()
        .flat_map(|(code, jt, jf, k)| {
            let [c0, c1] = code.to_ne_bytes();
            let [k0, k1, k2, k3] = k.to_ne_bytes();
            [c0, c1, *jt, *jf, k0, k1, k2, k3]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `AUDIT_ARCH_X86_64`, `AUDIT_ARCH_AARCH64` and `AUDIT_ARCH_I386` (linux/audit.h).
    const OWN_ARCH: u32 = if cfg!(target_arch = "x86_64") {
        0xc000_003e
    } else {
        0xc000_00b7
    };
    const OTHER_ARCH: u32 = 0x4000_0003;

    /// Interprets a program as the kernel does. `data` is `struct seccomp_data` as 32-bit words. Returns the result,
    /// and the number of instructions that were executed.
    fn run(program: &[Instruction], data: &[u32; 16]) -> (u32, usize) {
        let (mut at, mut accumulator, mut steps) = (0, 0, 0);
        loop {
            let (code, jt, jf, k) = program[at];
            steps += 1;
            at += 1 + match code {
                RETURN => return (k, steps),
                JUMP => k as usize,
                LOAD => {
                    accumulator = data[k as usize / 4];
                    0
                }
                0x54 => {
                    accumulator &= k;
                    0
                }
                0x15 => usize::from(if accumulator == k { jt } else { jf }),
                0x25 => usize::from(if accumulator > k { jt } else { jf }),
                AT_LEAST => usize::from(if accumulator >= k { jt } else { jf }),
                other => panic!("instruction {other:#x}"),
            };
        }
    }

    fn read(filter: &[u8]) -> Vec<Instruction> {
        let two = |bytes: &[u8]| u16::from_ne_bytes(bytes.try_into().unwrap());
        let four = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
        let chunks = filter.chunks(8);
        chunks
            .map(|i| (two(&i[..2]), i[2], i[3], four(&i[4..])))
            .collect()
    }

    /// The expected result, written independently of the rules above. `None` for calls that the kernel itself
    /// refuses. `above`: the upper 32 bits of each argument.
    fn expected(call: u32, args: &[u32], above: u32, memory: Keeper) -> Option<u32> {
        let call = i64::from(call);
        let refuse = |errno: i32| ERRNO | errno.unsigned_abs();
        let refuse_if = |is: bool| if is { refuse(libc::EPERM) } else { ALLOW };
        let sets_id = |mode: u32| mode & 0o4000 != 0 || mode & 0o2000 != 0;
        let makes = |flags: u32| flags & 0o100 != 0 || flags & 0o20_000_000 != 0;
        let device_allowed = |mode: u32| match mode & libc::S_IFMT {
            libc::S_IFCHR | libc::S_IFBLK => Some(false),
            0 | libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK => Some(!sets_id(mode)),
            _ => None,
        };
        let namespaces = [
            0x80, // CLONE_NEWTIME
            libc::CLONE_NEWNS,
            libc::CLONE_NEWCGROUP,
            libc::CLONE_NEWUTS,
            libc::CLONE_NEWIPC,
            libc::CLONE_NEWUSER,
            libc::CLONE_NEWPID,
            libc::CLONE_NEWNET,
        ];
        Some(match call {
            _ if call >= i64::from(UNKNOWN_FROM) => refuse(libc::ENOSYS),
            _ if MISSING.contains(&call) => refuse(libc::ENOSYS),
            _ if REFUSED.contains(&call) || REFUSED_HERE.contains(&call) => refuse(libc::EPERM),
            _ if memory == Keeper::Watcher && UNCOUNTED.contains(&call) => refuse(libc::ENOSYS),
            libc::SYS_fcntl => refuse_if(args[1] == 1024 || args[1] > 1038),
            libc::SYS_setsockopt if memory == Keeper::Watcher => {
                refuse_if(args[1] == 1 && matches!(args[2], 7 | 8 | 32 | 33))
            }
            libc::SYS_shmget if memory == Keeper::Watcher => {
                refuse_if(above != 0 || args[1] > 16 * 1024)
            }
            libc::SYS_fallocate => refuse(libc::EOPNOTSUPP),
            libc::SYS_clone => refuse_if(
                namespaces
                    .iter()
                    .any(|bit| args[0] & bit.cast_unsigned() != 0),
            ),
            libc::SYS_ioctl => refuse_if(matches!(args[1], 0x5412 | 0x541c)),
            libc::SYS_socket => match args[0].cast_signed() {
                libc::AF_UNIX | libc::AF_INET | libc::AF_INET6 => ALLOW,
                libc::AF_NETLINK => refuse_if(args[2] != 0),
                _ => refuse_if(true),
            },
            libc::SYS_fchmod => refuse_if(sets_id(args[1])),
            libc::SYS_fchmodat | FCHMODAT2 => refuse_if(sets_id(args[2])),
            libc::SYS_mknodat => refuse_if(!device_allowed(args[2])?),
            libc::SYS_openat => refuse_if(makes(args[2]) && sets_id(args[3])),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_chmod | libc::SYS_creat => refuse_if(sets_id(args[1])),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_mknod => refuse_if(!device_allowed(args[1])?),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => refuse_if(makes(args[1]) && sets_id(args[2])),
            _ => ALLOW,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_filter_matches_an_independent_description(
            args in proptest::array::uniform6(prop_oneof![
                // Per argument: a single bit, a socket family, other values with a meaning, or anything.
                (0..32_u32).prop_map(|bit| 1 << bit),
                0..46_u32, 1020..1045_u32, Just(16_384), Just(16_385), Just(0o4755), Just(0o20_644), Just(0o60_644), Just(0o100_644), Just(0o10_600), Just(0x5412), Just(0x541c), Just(0o1101),
                any::<u32>(),
            ]),
            // The upper 32 bits, which must not change the result.
            above in prop_oneof![Just(0), any::<u32>()],
            memory in prop_oneof![Just(Keeper::Watcher), Just(Keeper::CgroupV2)],
            other_arch in proptest::bool::weighted(0.05),
            x32 in proptest::bool::weighted(0.05),
        ) {
            let filter = read(&filter(memory).unwrap());
            for call in 0..UNKNOWN_FROM + 20 {
                let call = if x32 { call | 0x4000_0000 } else { call };
                let mut data = [above; 16];
                data[0] = call;
                data[1] = if other_arch { OTHER_ARCH } else { OWN_ARCH };
                for (at, arg) in args.iter().enumerate() {
                    data[4 + 2 * at] = *arg;
                }
                let expected = if other_arch { Some(libc::SECCOMP_RET_KILL_PROCESS) } else { expected(call, &args, above, memory) };
                let result = run(&filter, &data).0;
                prop_assert!(expected.is_none_or(|wanted| wanted == result), "call {call}: {result:#x}, not {expected:x?}");
            }
        }
    }

    #[test]
    fn every_call_is_decided_within_30_instructions() {
        let filter = read(&filter(Keeper::Watcher).unwrap());
        for call in 0..UNKNOWN_FROM {
            let mut data = [0; 16];
            (data[0], data[1]) = (call, OWN_ARCH);
            let (_, steps) = run(&filter, &data);
            assert!(steps < 30, "call {call}: {steps}");
        }
    }
}
