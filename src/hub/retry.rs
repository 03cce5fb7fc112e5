//! Which requests are made again, and when.

use std::thread;
use std::time::Duration;

use super::error::HubError;

/// So many requests in a row may fail without a byte of progress.
const MAX_FAILURES: u32 = 5;
/// Before the second try; doubled before each further one.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// A server that asks for more patience is not waited for.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// A request that failed, and whether the same one may succeed.
pub(super) struct Failure {
    pub error: HubError,
    pub again: Again,
}

/// Whether the same request may succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    Never,
    /// There was no connection at all: worth another try where there was one before.
    Reconnect,
    /// After a while.
    Later,
    /// After the time that the server asks for.
    After(Duration),
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Failure {
        Failure { error, again: Again::Never }
    }
}

/// Whether a server that answers with this status may answer otherwise later: too slow, too busy or broken. What it
/// does not implement (501, 505) it will not implement then.
pub(super) fn is_temporary(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..=599) && !matches!(status, 501 | 505)
}

/// Counts the failures in a row.
#[derive(Default)]
pub(super) struct Retries {
    failures: u32,
}

impl Retries {
    /// There was progress since the last failure.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait before the next try.
    ///
    /// # Errors
    /// The failure, where there is no next one.
    pub fn wait(&mut self, failure: Failure) -> Result<(Duration, HubError), HubError> {
        let wait = match failure.again {
            Again::Never => return Err(failure.error),
            Again::After(wait) if wait > MAX_WAIT => return Err(failure.error),
            Again::After(wait) => wait,
            Again::Later | Again::Reconnect => FIRST_WAIT * (1 << self.failures.min(8)),
        };
        self.failures += 1;
        if self.failures < MAX_FAILURES { Ok((wait, failure.error)) } else { Err(failure.error) }
    }
}

/// The answer to a request that is made until it succeeds, or fails for good; `waiting` is told of each wait.
pub(super) fn until_done<T>(
    mut request: impl FnMut() -> Result<T, Failure>,
    mut waiting: impl FnMut(&HubError, Duration),
) -> Result<T, HubError> {
    let mut retries = Retries::default();
    loop {
        match request() {
            Ok(answer) => return Ok(answer),
            Err(Failure { error, again: Again::Reconnect }) => return Err(error),
            Err(failure) => {
                let (wait, error) = retries.wait(failure)?;
                waiting(&error, wait);
                thread::sleep(wait);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(again: Again) -> Failure {
        Failure { error: HubError::NoCache, again }
    }

    #[test]
    fn waits_double_until_the_last_try() {
        let mut retries = Retries::default();
        let mut waits = || retries.wait(failure(Again::Later)).ok().map(|(wait, _)| wait.as_millis());
        assert_eq!(
            [waits(), waits(), waits(), waits(), waits()],
            [Some(500), Some(1000), Some(2000), Some(4000), None]
        );
        retries.reset();
        assert!(retries.wait(failure(Again::Later)).is_ok());
        assert!(retries.wait(failure(Again::Never)).is_err());
        assert!(retries.wait(failure(Again::After(Duration::from_secs(301)))).is_err());
        let asked = Duration::from_secs(7);
        assert_eq!(retries.wait(failure(Again::After(asked))).ok().map(|(wait, _)| wait), Some(asked));
    }

    #[test]
    fn a_busy_server_may_answer_later() {
        for status in [408, 429, 500, 502, 503, 504, 520, 524, 599] {
            assert!(is_temporary(status), "{status}");
        }
        for status in [400, 401, 403, 404, 416, 451, 501, 505, 600] {
            assert!(!is_temporary(status), "{status}");
        }
    }

    #[test]
    fn requests_are_made_until_one_succeeds() {
        let mut tries = 0;
        let mut waited = 0;
        let answer = until_done(
            || {
                tries += 1;
                if tries < 3 { Err(failure(Again::After(Duration::ZERO))) } else { Ok(tries) }
            },
            |_, _| waited += 1,
        );
        assert_eq!((answer.ok(), waited), (Some(3), 2));
        assert!(until_done(|| Err::<(), _>(failure(Again::Reconnect)), |_, _| panic!("no second try")).is_err());
    }
}
