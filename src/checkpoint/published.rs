//! The configurations of published networks, which are part of this program: shapes without weights.

/// Name and config.json, smallest first.
pub const PUBLISHED: [(&str, &str); 3] = [
    ("starcoder2-3b", include_str!("../../models/configs/starcoder2-3b.json")),
    ("starcoder2-7b", include_str!("../../models/configs/starcoder2-7b.json")),
    ("starcoder2-15b", include_str!("../../models/configs/starcoder2-15b.json")),
];

/// The published network of this name, in letters of any case; `starcoder2-` may be left out.
pub(super) fn find(name: &str) -> Option<(&'static str, &'static str)> {
    let name = name.to_ascii_lowercase();
    let short = |published: &str| published.strip_prefix("starcoder2-") == Some(name.as_str());
    PUBLISHED.into_iter().find(|(published, _)| *published == name || short(published))
}

/// The same by the hub's id of the network.
pub(super) fn find_repo(repo: &str) -> Option<(&'static str, &'static str)> {
    let (org, name) = repo.split_once('/')?;
    PUBLISHED
        .into_iter()
        .find(|(published, _)| org.eq_ignore_ascii_case("bigcode") && published.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_several_names() {
        for name in ["starcoder2-7b", "StarCoder2-7B", "7b", "7B"] {
            assert_eq!(find(name).unwrap().0, "starcoder2-7b", "{name}");
        }
        for name in ["8b", "", "b", "starcoder2-", "bigcode/starcoder2-7b", "7b "] {
            assert_eq!(find(name), None, "{name}");
        }
        assert_eq!(find_repo("bigcode/starcoder2-15b").unwrap().0, "starcoder2-15b");
        assert_eq!(find_repo("bigcode/starcoder2-15b-instruct-v0.1"), None);
        assert_eq!(find_repo("other/starcoder2-15b"), None);
    }
}
