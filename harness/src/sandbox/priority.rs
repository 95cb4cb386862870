//! What the kernel, the system bus and the subject tell is noticed at once, however busy the machine is: the thread is scheduled
//! before ordinary ones.

/// Schedules the calling thread before all ordinary ones (sched(7), SCHED_FIFO). It only waits and reads, and what it starts is
/// ordinary again. Where this is not permitted (an ordinary user) it stays as it is: then a version that was not read in time makes
/// a case inconclusive a little more often, and on a machine with too much to do a call on the bus or a reported
/// state is noted late.
pub(crate) fn be_prompt() {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads one sched_param; 0 stands for the calling thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const lowest) } != 0 {
        tracing::debug!("watching with ordinary priority: {}", std::io::Error::last_os_error());
    }
}
