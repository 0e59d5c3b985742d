//! Which system calls are refused inside. Namespaces do not cover these: keyrings, `io_uring`, vsock, and calls whose
//! only use inside would be a way out or a large surface of the kernel.
//!
//! What is refused answers with an error rather than death, so that programs that only try go on. A call that enters by
//! the 32-bit way ends its process.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// The first number of a call that was not looked at. What is newer, and the numbers of the x32 way, do not exist here.
const UNKNOWN_FROM: u32 = 463;

/// Calls that are refused whatever their arguments are.
const REFUSED: &[i64] = &[
    // Mounts, old and new, and other roots.
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
    // Large surfaces.
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
    // Files by number, past every path.
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

/// Calls that do not exist inside: programs have another way for these.
const MISSING: &[i64] = &[
    libc::SYS_clone3,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    MEMFD_SECRET,
    // The mode of a file that it makes is where no filter reads.
    libc::SYS_openat2,
];

// Of the numbers that are the same on every architecture, those that the library does not name everywhere.
const PIDFD_GETFD: i64 = 438;
const QUOTACTL_FD: i64 = 443;
const MEMFD_SECRET: i64 = 447;
const FCHMODAT2: i64 = 452;

/// Each kind of namespace, as a flag of `clone`. By themselves: one is enough.
const CLONE_NEW: [u64; 8] = [
    0x0000_0080, // time
    0x0002_0000, // mounts
    0x0200_0000, // cgroup
    0x0400_0000, // uts
    0x0800_0000, // ipc
    0x1000_0000, // user
    0x2000_0000, // pid
    0x4000_0000, // net
];

/// Requests to a terminal that type for somebody else.
const IOCTLS: [u64; 2] = [
    0x5412, // TIOCSTI
    0x541c, // TIOCLINUX
];

/// Families of sockets that there are: unix, internet, netlink. Not vsock, not packets, nor any other.
const FAMILIES: [u64; 4] = [1, 2, 10, NETLINK];
const NETLINK: u64 = 16;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;
/// One instruction, as `struct sock_filter` has it: code, jump if true, jump if false, constant.
type Instruction = (u16, u8, u8, u32);

// Instructions of classic BPF, and what a filter answers (linux/bpf_common.h, linux/seccomp.h).
const LOAD: u16 = 0x20; // the 32 bits at an offset of `struct seccomp_data`
const JUMP: u16 = 0x05;
const AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
/// Where the number of the call stands in `struct seccomp_data`.
const NUMBER: u32 = 0;
/// So many calls are looked at in one row.
const CALLS_TOGETHER: usize = 8;

/// A filter for calls of these numbers only, both ends included; for all where there are none.
struct Part {
    between: Option<(i64, i64)>,
    program: Vec<Instruction>,
}

/// The filter, as the kernel reads it.
///
/// # Errors
/// Where the machine's architecture is none that is known.
pub(super) fn filter() -> io::Result<Vec<u8>> {
    let programs = parts()?.into_iter().map(|part| match part.between {
        Some((first, last)) => only_between(first, last, part.program),
        None => Ok(part.program),
    });
    let programs = programs.collect::<io::Result<Vec<_>>>()?;
    Ok(bytes_of(&one_after_the_other(&programs)))
}

/// What the filter is put together from. The first one looks at the architecture, for all.
fn parts() -> io::Result<Vec<Part>> {
    let arch: TargetArch = std::env::consts::ARCH
        .try_into()
        .map_err(|_| io::Error::other("system calls of this architecture cannot be filtered"))?;
    let all = |calls: &[i64]| -> Rules { calls.iter().map(|call| (*call, Vec::new())).collect() };
    let build = |errno: i32, between, rules: Rules| -> io::Result<Part> {
        let program: BpfProgram = SeccompFilter::new(
            rules,
            SeccompAction::Allow,
            SeccompAction::Errno(errno.unsigned_abs()),
            arch,
        )
        .and_then(TryInto::try_into)
        .map_err(io::Error::other)?;
        let program = program.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect();
        Ok(Part { between, program })
    };
    let mut parts = vec![
        build(libc::ENOSYS, None, all(MISSING))?,
        // Growth of files then takes the time of writing them.
        build(libc::EOPNOTSUPP, None, all(&[libc::SYS_fallocate]))?,
    ];
    let refused: Vec<(i64, Vec<SeccompRule>)> =
        refused().map_err(io::Error::other)?.into_iter().collect();
    for calls in refused.chunks(CALLS_TOGETHER) {
        let ends = calls.first().zip(calls.last());
        let between = ends.map(|((first, _), (last, _))| (*first, *last));
        parts.push(build(
            libc::EPERM,
            between,
            calls.iter().cloned().collect(),
        )?);
    }
    parts.push(Part {
        between: None,
        program: known_only().to_vec(),
    });
    Ok(parts)
}

/// A program that is gone through for these numbers only, both ends included. Whatever is refused stands in one long row
/// otherwise, and the kernel goes through the whole of it for each number there is when a filter is set.
fn only_between(first: i64, last: i64, program: Vec<Instruction>) -> io::Result<Vec<Instruction>> {
    let number = |number: i64| u32::try_from(number).map_err(io::Error::other);
    let past = u32::try_from(program.len()).map_err(io::Error::other)?;
    let mut guarded = vec![
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, number(first)?),
        (AT_LEAST, 0, 1, number(last + 1)?),
        (JUMP, 0, 0, past),
    ];
    guarded.extend(program);
    Ok(guarded)
}

/// What one program allows, the next one looks at. The library gives a program one answer to what it refuses; as so many
/// filters they would do the same, and the kernel takes a quarter of a millisecond for each.
fn one_after_the_other(programs: &[Vec<Instruction>]) -> Vec<Instruction> {
    let mut joined = Vec::new();
    for (index, program) in programs.iter().enumerate() {
        let is_last = index + 1 == programs.len();
        for (at, instruction) in program.iter().enumerate() {
            let to_the_next = u32::try_from(program.len() - at - 1).unwrap_or(u32::MAX);
            joined.push(match instruction {
                (RETURN, _, _, ALLOW) if !is_last => (JUMP, 0, 0, to_the_next),
                other => *other,
            });
        }
    }
    joined
}

fn refused() -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = REFUSED
        .iter()
        .chain(REFUSED_HERE)
        .map(|call| (*call, Vec::new()))
        .collect();
    let flag = |arg, flag| one(arg, SeccompCmpOp::MaskedEq(flag), flag);
    rules.insert(
        libc::SYS_clone,
        CLONE_NEW
            .iter()
            .map(|bit| flag(0, *bit))
            .collect::<Result<_, _>>()?,
    );
    rules.insert(
        libc::SYS_ioctl,
        IOCTLS
            .iter()
            .map(|request| one(1, SeccompCmpOp::Eq, *request))
            .collect::<Result<_, _>>()?,
    );
    let other_family = FAMILIES
        .iter()
        .map(|family| condition(0, SeccompCmpOp::Ne, *family))
        .collect::<Result<_, _>>()?;
    let netlink_beyond_routes = vec![
        condition(0, SeccompCmpOp::Eq, NETLINK)?,
        condition(2, SeccompCmpOp::Ne, 0)?,
    ];
    rules.insert(
        libc::SYS_socket,
        vec![
            SeccompRule::new(other_family)?,
            SeccompRule::new(netlink_beyond_routes)?,
        ],
    );
    // Devices, and the bits that make a program run as its owner.
    let special = |mode| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        [0o4000, 0o2000]
            .iter()
            .map(|bit| flag(mode, *bit))
            .collect()
    };
    let device = |mode| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        [0o020_000, 0o060_000]
            .iter()
            .map(|kind| one(mode, SeccompCmpOp::MaskedEq(0o170_000), *kind))
            .collect()
    };
    // The same where a file is made: in every other case the argument means nothing, and may be anything.
    let special_when_made = |flags: u8, mode: u8| {
        let (created, nameless) = (0o100, 0o20_000_000);
        let pairs = [created, nameless]
            .into_iter()
            .flat_map(|flag| [0o4000, 0o2000].map(|bit| (flag, bit)));
        pairs
            .map(|(flag, bit)| {
                SeccompRule::new(vec![
                    condition(flags, SeccompCmpOp::MaskedEq(flag), flag)?,
                    condition(mode, SeccompCmpOp::MaskedEq(bit), bit)?,
                ])
            })
            .collect::<Result<Vec<_>, _>>()
    };
    let made = |mode| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        Ok(device(mode)?.into_iter().chain(special(mode)?).collect())
    };
    rules.insert(libc::SYS_mknodat, made(2)?);
    rules.insert(libc::SYS_openat, special_when_made(2, 3)?);
    rules.insert(libc::SYS_fchmod, special(1)?);
    rules.insert(libc::SYS_fchmodat, special(2)?);
    rules.insert(FCHMODAT2, special(2)?);
    #[cfg(target_arch = "x86_64")]
    {
        rules.insert(libc::SYS_mknod, made(1)?);
        rules.insert(libc::SYS_open, special_when_made(1, 2)?);
        rules.insert(libc::SYS_creat, special(1)?);
        rules.insert(libc::SYS_chmod, special(1)?);
    }
    Ok(rules)
}

fn one(arg: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![condition(arg, op, value)?])
}

/// The kernel reads these arguments as 32 bits; what stands above them changes nothing, and must not here.
fn condition(
    arg: u8,
    op: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(arg, SeccompCmpArgLen::Dword, op, value)
}

/// Numbers from [`UNKNOWN_FROM`] on do not exist. The library compares for equality only, so that this is by hand.
fn known_only() -> [Instruction; 4] {
    [
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, UNKNOWN_FROM),
        (RETURN, 0, 0, ERRNO | libc::ENOSYS.unsigned_abs()),
        (RETURN, 0, 0, ALLOW),
    ]
}

/// `struct sock_filter` one after the other.
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

    /// Does what the kernel does with a program: its answer to `struct seccomp_data`, as 32 bits at a time, and how many
    /// instructions that took.
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// The parts as so many filters, of which the kernel takes the strictest answer, say the same as the one.
        #[test]
        fn the_filter_answers_as_its_parts_do(
            arguments in proptest::array::uniform12(prop_oneof![
                Just(0_u32), Just(1), Just(16), Just(0o100), Just(0o4755), Just(0o20_644), Just(0x5412), Just(0x2000_0000), any::<u32>(),
            ]),
            other_arch in proptest::bool::weighted(0.05),
            x32 in proptest::bool::weighted(0.05),
        ) {
            let whole = read(&filter().unwrap());
            let parts = parts().unwrap();
            for number in 0..UNKNOWN_FROM + 20 {
                let mut data = [0; 16];
                data[0] = if x32 { number | 0x4000_0000 } else { number };
                data[1] = if other_arch { OTHER_ARCH } else { OWN_ARCH };
                data[4..].copy_from_slice(&arguments);
                let apart = parts.iter().map(|part| run(&part.program, &data).0);
                // To kill the process is the lowest, as a signed number.
                let strictest = apart.min_by_key(|answer| answer.cast_signed());
                prop_assert_eq!(Some(run(&whole, &data).0), strictest, "call {}", number);
            }
        }
    }

    /// The kernel goes the way of each number when the filter is set.
    #[test]
    fn a_plain_call_is_allowed_after_a_few_dozen_instructions() {
        let mut data = [0; 16];
        (data[0], data[1]) = (u32::try_from(libc::SYS_getpid).unwrap(), OWN_ARCH);
        let (answer, steps) = run(&read(&filter().unwrap()), &data);
        assert_eq!(answer, ALLOW);
        assert!(steps < 120, "{steps}");
    }
}
