//! How far the copies are: a bar for each on a terminal, a line now and then in a log.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::serve::{CopyProgress, Pulse};

const LOOK: Duration = Duration::from_millis(200);
/// Between two lines about one copy in a log.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Standard error, shared by the log and, where it is a terminal, the bars.
#[derive(Debug, Clone)]
pub struct Console {
    bars: Option<MultiProgress>,
}

impl Console {
    /// With bars, if they are wanted and standard error is a terminal.
    pub fn new(wants_bars: bool) -> Self {
        Self { bars: (wants_bars && io::stderr().is_terminal()).then(MultiProgress::new) }
    }

    /// Shows the copies until it is dropped.
    pub(super) async fn show(self, pulse: Arc<Pulse>) {
        let mut shown: HashMap<u64, ProgressBar> = HashMap::new();
        let mut logged: HashMap<u64, Instant> = HashMap::new();
        loop {
            tokio::time::sleep(LOOK).await;
            let copies = pulse.copies.under_way();
            let runs = |number: &u64| copies.iter().any(|copy| copy.number == *number);
            match &self.bars {
                Some(bars) => {
                    shown.retain(|number, bar| {
                        runs(number) || {
                            bar.finish_and_clear();
                            bars.remove(bar);
                            false
                        }
                    });
                    for copy in &copies {
                        draw(shown.entry(copy.number).or_insert_with(|| bars.add(bar(copy))), copy);
                    }
                }
                None => {
                    logged.retain(|number, _| runs(number));
                    for copy in &copies {
                        let last = logged.entry(copy.number).or_insert_with(Instant::now);
                        if last.elapsed() >= LOG_EVERY {
                            *last = Instant::now();
                            tracing::info!(table = copy.table, rows = copy.rows, expected = copy.expected, "copying");
                        }
                    }
                }
            }
        }
    }
}

fn bar(copy: &CopyProgress) -> ProgressBar {
    // The templates are constants, and a test draws them.
    let style =
        |template: &str| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = if copy.expected > 0 {
        ProgressBar::new(copy.expected)
            .with_style(style("{msg} {wide_bar} {human_pos} of about {human_len} rows, {per_sec}, {eta}"))
    } else {
        ProgressBar::no_length().with_style(style("{msg} {spinner} {human_pos} rows, {per_sec}"))
    };
    bar.with_message(copy.table.clone())
}

fn draw(bar: &ProgressBar, copy: &CopyProgress) {
    if copy.expected > 0 && copy.rows > copy.expected {
        // The statistics were old.
        bar.set_length(copy.rows);
    }
    bar.set_position(copy.rows);
    bar.tick();
}

impl Write for Console {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &self.bars {
            // The bars make room for the line.
            Some(bars) => bars.suspend(|| io::stderr().write_all(line)).map(|()| line.len()),
            None => io::stderr().write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
