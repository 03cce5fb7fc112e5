//! Options that were given and change nothing.

use rigel::sampling::SamplingParams;

/// Options that greedy decoding does not look at.
pub const WHEN_GREEDY: [&str; 4] = ["--top-k", "--top-p", "--min-p", "--seed"];

/// What is said of the options given that greedy decoding does not look at, where it is greedy.
pub fn when_greedy(given: &[&str], params: &SamplingParams) -> Option<String> {
    let idle: Vec<&str> = given.iter().copied().filter(|name| WHEN_GREEDY.contains(name)).collect();
    have_no_effect(&idle).filter(|_| params.temperature == 0.0)
}

/// `--top-k and --seed have no effect`; none where there are no such options.
pub fn have_no_effect(options: &[&str]) -> Option<String> {
    let (last, others) = options.split_last()?;
    Some(match others {
        [] => format!("{last} has no effect"),
        others => format!("{} and {last} have no effect", others.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_options_are_found() {
        let greedy = SamplingParams::default();
        let said = |given: &[&str]| when_greedy(given, &greedy);
        assert_eq!(said(&["--seed"]).unwrap(), "--seed has no effect");
        assert_eq!(said(&["--top-k", "--stop", "--top-p"]).unwrap(), "--top-k and --top-p have no effect");
        assert_eq!(said(&["--stop", "--repetition-penalty"]), None);
        assert_eq!(when_greedy(&["--seed"], &SamplingParams { temperature: 1.0, ..greedy.clone() }), None);
        assert_eq!(have_no_effect(&["a", "b", "c"]).unwrap(), "a, b and c have no effect");
    }
}
