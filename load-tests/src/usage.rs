//! What this process has used.

use std::time::Duration;

/// User and system CPU time so far, of all threads.
pub fn cpu() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is valid for a `rusage`, which the call fills; all-zero is a valid `rusage`, should the call fail.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |t: libc::timeval| Duration::new(t.tv_sec.unsigned_abs(), t.tv_usec.unsigned_abs() as u32 * 1_000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// CPU time of this thread so far.
pub fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid for a `timespec`, which the call fills.
    unsafe {
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time);
    }
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Largest resident memory since the process began, bytes. Not taken from `getrusage`, whose peak a child inherits from its parent.
pub fn peak_memory() -> u64 {
    status("self", "VmHWM:")
}

/// Resident memory now, bytes.
pub fn memory() -> u64 {
    status("self", "VmRSS:")
}

/// Resident memory of another process, bytes; 0 when it has gone.
pub fn memory_of(pid: u32) -> u64 {
    status(&pid.to_string(), "VmRSS:")
}

/// Its largest so far.
pub fn peak_memory_of(pid: u32) -> u64 {
    status(&pid.to_string(), "VmHWM:")
}

/// CPU time of another process so far, user and system, in hundredths of a second; 0 when it has gone.
pub fn cpu_of(pid: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in brackets, may hold spaces; of what follows, the 12th and 13th.
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    Duration::from_millis(fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10)
}

fn status(process: &str, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok()).map_or(0, |kib| kib * 1_024)
}
