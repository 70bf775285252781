//! "Did you mean": the nearest known name to a mistyped one.

/// The candidate nearest to `word`, if one is near enough to have been meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    let limit = (word.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&word, &c.to_ascii_lowercase()), c))
        .filter(|&(distance, c)| distance <= limit && distance < c.len())
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, c)| c)
}

/// `; did you mean X?`, or a list of all candidates if none is near and they are few, or nothing.
pub fn hint<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(near) = nearest(word, candidates.clone()) {
        return format!("; did you mean {near}?");
    }
    let all: Vec<&str> = candidates.into_iter().collect();
    if (1..=8).contains(&all.len()) { format!("; known: {}", all.join(", ")) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_transpositions_and_refuses_strangers() {
        let names = ["kernel", "initrd", "append", "nographic", "m"];
        assert_eq!(nearest("kernle", names), Some("kernel"));
        assert_eq!(nearest("nographics", names), Some("nographic"));
        assert_eq!(nearest("KERNEL", names), Some("kernel"));
        assert_eq!(nearest("frobnicate", names), None);
        assert_eq!(nearest("x", names), None, "one wrong letter out of one is no likeness");
        assert_eq!(hint("zzzz", names), "; known: kernel, initrd, append, nographic, m");
    }
}
