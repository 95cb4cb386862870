//! Live progress: a line per running case on a terminal, plain lines elsewhere.

use crate::terminal::paint;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::{io::IsTerminal, sync::Mutex, time::Duration};
use watertight::{case::CasePlan, run::Progress};

/// Shows what runs.
pub struct Live<'a> {
    plans: &'a [CasePlan],
    bars: Option<MultiProgress>,
    total: Option<ProgressBar>,
    running: Mutex<Vec<(usize, ProgressBar)>>,
    done: Mutex<usize>,
}

impl<'a> Live<'a> {
    pub fn new(plans: &'a [CasePlan]) -> Self {
        let live = std::io::stderr().is_terminal() && std::env::var_os("CI").is_none();
        let bars = live.then(MultiProgress::new);
        let total = bars.as_ref().map(|bars| {
            let style =
                ProgressStyle::with_template("{bar:30} {pos}/{len} cases, {elapsed}").expect("a valid template");
            bars.add(ProgressBar::new(plans.len() as u64).with_style(style))
        });
        Self { plans, bars, total, running: Mutex::default(), done: Mutex::default() }
    }

    pub fn observe(&self, progress: Progress) {
        match progress {
            Progress::Started { index } => {
                let Some(bars) = &self.bars else { return };
                let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("a valid template");
                let bar = bars.add(ProgressBar::new_spinner().with_style(style).with_message(self.name(index)));
                bar.enable_steady_tick(Duration::from_millis(120));
                self.running.lock().expect("no holder panics").push((index, bar));
            }
            Progress::Finished { index, verdict } => {
                let mut done = self.done.lock().expect("no holder panics");
                *done += 1;
                let seconds = verdict.duration_ms as f64 / 1000.0;
                let reason = if verdict.reason.is_empty() {
                    String::new()
                } else {
                    format!("  {}", first_line(&verdict.reason))
                };
                match &self.bars {
                    Some(bars) => {
                        let mut running = self.running.lock().expect("no holder panics");
                        if let Some(at) = running.iter().position(|(running, _)| *running == index) {
                            let (_, bar) = running.swap_remove(at);
                            bar.finish_and_clear();
                        }
                        if let Some(total) = &self.total {
                            total.inc(1);
                        }
                        if verdict.verdict != watertight::judge::Verdict::Pass {
                            let _ = bars.println(format!("{} {}{reason}", paint(verdict.verdict), self.name(index)));
                        }
                    }
                    None => eprintln!(
                        "[{done}/{}] {:<13} {} ({seconds:.1} s){reason}",
                        self.plans.len(),
                        verdict.verdict,
                        self.name(index)
                    ),
                }
            }
        }
    }

    fn name(&self, index: usize) -> String {
        let plan = &self.plans[index];
        format!("{} [{}]", plan.scenario, plan.axes.id())
    }

    pub fn finish(&self) {
        if let Some(total) = &self.total {
            total.finish_and_clear();
        }
    }
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(220) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}
