//! Warnings of the library and of the commands, one line each on stderr: `warning: …`. `RUST_LOG` and `--verbose` say
//! which.

use std::fmt;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::option_names;
use super::running;

/// Sends log lines to stderr from here on. `verbose` is how often `--verbose` was given; `RUST_LOG` wins over it.
pub fn init(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    let filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false) // a closed stderr is no reason to stop
        .event_format(Lines)
        .init();
}

/// `level: message`, no time stamps.
struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        match level {
            Level::ERROR => writer.write_str("error: ")?,
            Level::WARN => writer.write_str("warning: ")?,
            Level::INFO => writer.write_str("info: ")?,
            _ => write!(writer, "{} {}: ", level.as_str().to_ascii_lowercase(), event.metadata().target())?,
        }
        let mut message = String::new();
        context.format_fields(Writer::new(&mut message), event)?;
        let message = option_names::of_settings(&message);
        let origins = if level <= Level::WARN { running::origins(&message) } else { String::new() };
        writeln!(writer, "{message}{origins}")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What is written, for everybody who has a clone.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_library_s_advice_gets_its_option() {
        let shared = Shared::default();
        let writer = shared.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).event_format(Lines).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "rigel::network_file_system", "read the weights into memory instead");
            tracing::warn!("a tensor is not used");
        });
        let lines = String::from_utf8(shared.0.lock().unwrap().clone()).unwrap();
        let expected = "warning: read the weights into memory instead with --no-mmap\nwarning: a tensor is not used\n";
        assert_eq!(lines, expected);
    }
}
