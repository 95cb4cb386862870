//! Tests of the agent as a process: real sockets, links and rules in network namespaces that each test makes for itself.
//!
//! This program is the agent too, as the real one is, so it has a main of its own.

mod lab;
mod outcomes;
mod ways;
mod work;

use lab::{Agent, Lab};
use libtest_mimic::{Arguments, Trial};
use std::{future::Future, pin::Pin, process::ExitCode};

type Test = fn(Lab) -> Pin<Box<dyn Future<Output = ()>>>;

/// A test by the name of its function.
macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), (|lab| Box::pin($module::$name(lab))) as Test)),*]
    };
}

const TESTS: &[(&str, Test)] = tests![
    outcomes::answers_over_udp_tcp_and_tls,
    outcomes::silence_and_refusals_by_the_far_side,
    outcomes::drops_and_rejects_of_a_local_firewall,
    outcomes::what_cannot_be_tried_does_not_count_as_tried,
    ways::marks_and_users_are_seen_by_the_firewall,
    ways::old_flows_stay_open_and_meet_the_new_rules,
    ways::frames_pass_below_the_output_hook,
    ways::raw_packets_meet_the_output_hook,
    ways::fast_open_puts_the_query_into_the_syn,
    ways::getaddrinfo_follows_resolv_conf,
    work::bad_lines_are_told_and_the_agent_goes_on,
    work::many_probes_run_at_the_same_time,
    work::a_hammer_counts_what_it_sends,
    work::listeners_tell_what_arrives,
    work::loopback_is_checked_over_every_transport,
    work::neighbours_are_resolved,
    work::leases_are_offered,
    work::a_dead_agent_is_noticed,
];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("@agent") => return watertight::agent::run(),
        Some("@getaddrinfo") => return watertight::agent::getaddrinfo_main(arguments),
        _ => {}
    }
    let trials = TESTS
        .iter()
        .map(|(name, test)| {
            Trial::test(*name, move || {
                lab::with(*test);
                Ok(())
            })
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// The one attempt of a single probe.
async fn attempt(agent: &Agent, via: watertight::agent::wire::Via) -> watertight::agent::wire::Attempt {
    let name = agent.fresh_name();
    named(agent, &name, via).await
}

/// The one attempt of a single probe with a given name.
async fn named(agent: &Agent, name: &str, via: watertight::agent::wire::Via) -> watertight::agent::wire::Attempt {
    let probed = agent.client.probe(vec![lab::spec(name, via)]).await.unwrap();
    assert_eq!(probed.missing, []);
    probed.attempts.into_iter().next().unwrap().1
}
