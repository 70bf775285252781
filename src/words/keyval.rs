//! QEMU's `key=value,key=value` grammar: `,,` is a comma inside a value, a bare `key` means `key=on`, the first part
//! without a `=` is the value of an implied key.

use super::suggest;
use super::values::{self, Refusal};
use anyhow::{Result, anyhow};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Keys of options, by the option's name without its dash, and whether they are switches.
pub type Heard = BTreeMap<String, BTreeMap<&'static str, bool>>;

thread_local! {
    /// What [`listen`] hears.
    static HEARD: RefCell<Option<Heard>> = const { RefCell::new(None) };
}

/// Runs `work`, and tells which keys of which options were asked for in it: those that there are, whether they were given or
/// not.
pub fn listen(work: impl FnOnce()) -> Heard {
    HEARD.set(Some(Heard::new()));
    work();
    HEARD.take().unwrap_or_default()
}

/// A key of an option was asked for. Parts of options, which have their words in their names, are not counted.
fn asked(option: &str, key: &'static str, switch: bool) {
    HEARD.with_borrow_mut(|heard| {
        if let (Some(heard), Some(name)) = (heard, option.strip_prefix('-').filter(|name| !name.contains(' '))) {
            *heard.entry(name.to_owned()).or_default().entry(key).or_default() |= switch;
        }
    });
}

/// The parts of one option's value, from which keys are taken one by one.
pub struct KeyValues {
    option: String,
    pairs: Vec<(String, String)>,
    known: Vec<&'static str>,
}

/// Splits at single commas; doubled ones become literal.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let last = parts.len() - 1;
        match c {
            ',' if rest.peek() == Some(&',') => {
                rest.next();
                parts[last].push(',');
            }
            ',' => parts.push(String::new()),
            c => parts[last].push(c),
        }
    }
    parts
}

/// The strings of a list of objects that have each a string `str` and nothing else, and of at least one.
pub fn strings(list: &[serde_json::Value]) -> Option<Vec<&str>> {
    let one = |value: &'_ serde_json::Value| value.as_object().is_some_and(|object| object.len() == 1);
    let all: Option<Vec<&str>> = list.iter().map(|value| value.get("str")?.as_str()).collect();
    all.filter(|all| !all.is_empty() && list.iter().all(one))
}

impl KeyValues {
    /// Parses `text`, the value of `option` (with its dash). `implied` names the key of a first part without `=`.
    pub fn parse(option: &str, text: &str, implied: Option<&'static str>) -> Result<Self> {
        let mut this = Self::none(option);
        this.add(text, implied)?;
        Ok(this)
    }

    /// No parts yet.
    pub fn none(option: &str) -> Self {
        Self { option: option.to_owned(), pairs: Vec::new(), known: Vec::new() }
    }

    /// Adds another occurrence of the option.
    pub fn add(&mut self, text: &str, implied: Option<&'static str>) -> Result<()> {
        if text.starts_with('{') {
            return self.add_json(text);
        }
        for (i, part) in split(text).into_iter().enumerate() {
            let (key, value) = match (part.split_once('='), implied) {
                (Some((k, v)), _) => (k.to_owned(), v.to_owned()),
                (None, Some(implied)) if i == 0 => (implied.to_owned(), part),
                (None, _) => (part, "on".to_owned()),
            };
            if key.is_empty() {
                return Err(anyhow!("{} {text}: empty part; write key=value,key=value", self.option));
            }
            self.pairs.push((key, value));
        }
        Ok(())
    }

    /// QEMU also takes a JSON object in place of the list. What is inside an object or a list in it has keys with dots.
    fn add_json(&mut self, text: &str) -> Result<()> {
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(text).map_err(|e| anyhow!("{} {text}: not a JSON object: {e}", self.option))?;
        object.into_iter().for_each(|(key, value)| self.add_value(key, value));
        Ok(())
    }

    /// The parts that were not taken yet, in order.
    pub fn pairs(&self) -> Vec<(&str, &str)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
    }

    fn add_value(&mut self, key: String, value: serde_json::Value) {
        use serde_json::Value;
        let plain = match value {
            Value::Bool(b) => if b { "on" } else { "off" }.to_owned(),
            Value::Number(n) => n.to_string(),
            Value::String(s) => s,
            Value::Null => String::new(),
            Value::Object(inner) => {
                return inner.into_iter().for_each(|(name, value)| self.add_value(format!("{key}.{name}"), value));
            }
            // A list of QAPI's `String` is a key that is given several times.
            Value::Array(inner) if strings(&inner).is_some() => {
                let strings = strings(&inner).unwrap_or_default();
                return self.pairs.extend(strings.into_iter().map(|string| (key.clone(), string.to_owned())));
            }
            Value::Array(inner) => {
                return (0..)
                    .zip(inner)
                    .for_each(|(at, value): (usize, _)| self.add_value(format!("{key}.{at}"), value));
            }
        };
        self.pairs.push((key, plain));
    }

    /// Takes the keys that begin with `outer` and a dot: those of something inside, without these.
    pub fn take_inner(&mut self, outer: &'static str) -> Self {
        self.known.push(outer);
        let mut inner = Self::none(&format!("{} {outer}", self.option));
        for (key, value) in std::mem::take(&mut self.pairs) {
            match key.strip_prefix(outer).and_then(|rest| rest.strip_prefix('.')) {
                Some(rest) => inner.pairs.push((rest.to_owned(), value)),
                None => self.pairs.push((key, value)),
            }
        }
        inner
    }

    /// Whether nothing is left, or was ever there.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The option, with its dash.
    pub fn option(&self) -> &str {
        &self.option
    }

    /// `-option key=value: message`.
    pub fn error(&self, key: &str, value: &str, message: impl std::fmt::Display) -> anyhow::Error {
        anyhow!("{} {key}={value}: {message}", self.option)
    }

    /// Every value of `key`, in order.
    pub fn take_all(&mut self, key: &'static str) -> Vec<String> {
        self.known.push(key);
        asked(&self.option, key, false);
        let (mine, rest) = std::mem::take(&mut self.pairs).into_iter().partition(|(k, _)| k == key);
        self.pairs = rest;
        let mine: Vec<(String, String)> = mine;
        mine.into_iter().map(|(_, v)| v).collect()
    }

    /// The first value of `key`, which stays.
    pub fn peek(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// The value of `key`, which may be given once.
    pub fn take(&mut self, key: &'static str) -> Result<Option<String>> {
        let mut all = self.take_all(key);
        match all.len() {
            0 | 1 => Ok(all.pop()),
            _ => Err(anyhow!("{}: {key} is given {} times; give it once", self.option, all.len())),
        }
    }

    /// The value of `key`, converted.
    pub fn take_as<T>(
        &mut self,
        key: &'static str,
        convert: impl FnOnce(&str) -> Result<T, Refusal>,
    ) -> Result<Option<T>> {
        match self.take(key)? {
            None => Ok(None),
            Some(text) => convert(&text).map(Some).map_err(|e| self.error(key, &text, e)),
        }
    }

    /// An on/off key.
    pub fn take_switch(&mut self, key: &'static str) -> Result<Option<bool>> {
        asked(&self.option, key, true);
        self.take_as(key, values::switch)
    }

    /// A key that may only say what is so anyway; `why` says what else would be needed.
    pub fn take_fixed(&mut self, key: &'static str, only: bool, why: &str) -> Result<()> {
        match self.take_switch(key)? {
            Some(v) if v != only => {
                let (asked, only) = if only { ("off", "on") } else { ("on", "off") };
                Err(self.error(key, asked, format_args!("{why}; use {key}={only}")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses keys that nobody took.
    pub fn finish(self) -> Result<()> {
        match self.pairs.first() {
            None => Ok(()),
            Some((key, _)) => {
                let hint = suggest::hint(key, self.known.iter().copied());
                Err(anyhow!("{}: unknown or unsupported key '{key}'{hint}", self.option))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammar() {
        let mut kv = KeyValues::parse("-x", "pc,a=1,,2=3,flag,r=1,r=2", Some("type")).unwrap();
        assert_eq!(kv.take("type").unwrap().as_deref(), Some("pc"));
        assert_eq!(kv.take("a").unwrap().as_deref(), Some("1,2=3"));
        assert_eq!(kv.take_switch("flag").unwrap(), Some(true));
        assert_eq!(kv.take_all("r"), ["1", "2"]);
        assert!(kv.take("none").unwrap().is_none());
        kv.finish().unwrap();
    }

    #[test]
    fn json_objects() {
        let mut kv = KeyValues::parse("-device", r#"{"driver":"loader","addr":4096,"force-raw":true}"#, None).unwrap();
        assert_eq!(kv.take("driver").unwrap().as_deref(), Some("loader"));
        assert_eq!(kv.take_as("addr", values::number).unwrap(), Some(4096));
        assert_eq!(kv.take_switch("force-raw").unwrap(), Some(true));
        assert!(KeyValues::parse("-device", "{oops", None).is_err());
        let mut kv = KeyValues::parse("-x", r#"{"a":{"b":1,"c":{"d":null}},"e":["f",{"g":true}]}"#, None).unwrap();
        assert_eq!((kv.take("e.0").unwrap().as_deref(), kv.take_switch("e.1.g").unwrap()), (Some("f"), Some(true)));
        let mut inner = kv.take_inner("a");
        assert_eq!(inner.take("b").unwrap().as_deref(), Some("1"));
        assert_eq!(inner.take_inner("c").take("d").unwrap().as_deref(), Some(""));
        assert!(inner.is_empty() && kv.is_empty());
        let mut kv = KeyValues::parse("-x", "file.driver=file,file=a,files=1", None).unwrap();
        let told = kv.take_inner("file").finish().unwrap_err().to_string();
        assert_eq!(told, "-x file: unknown or unsupported key 'driver'");
        assert_eq!(kv.take("files").unwrap().as_deref(), Some("1"));
    }

    #[test]
    fn keys_that_are_asked_for_are_heard() {
        let heard = listen(|| {
            let mut kv = KeyValues::parse("-x", "a=1", None).unwrap();
            assert!(kv.take("a").is_ok() && kv.take_switch("b").is_ok() && kv.take_all("c").is_empty());
            assert!(kv.take_inner("d").take("e").is_ok());
        });
        assert_eq!(heard, Heard::from([("x".to_owned(), BTreeMap::from([("a", false), ("b", true), ("c", false)]))]));
        // Nobody listens any more.
        assert!(KeyValues::parse("-x", "a=1", None).unwrap().take("a").is_ok());
        assert_eq!(listen(|| ()), Heard::new());
    }

    #[test]
    fn errors_name_option_key_and_remedy() {
        let err = |r: Result<()>| r.unwrap_err().to_string();
        let mut kv = KeyValues::parse("-rtc", "base=utc,base=localtime", None).unwrap();
        assert_eq!(kv.take("base").unwrap_err().to_string(), "-rtc: base is given 2 times; give it once");
        let mut kv = KeyValues::parse("-rtc", "bsae=utc", None).unwrap();
        kv.take("base").unwrap();
        kv.take("clock").unwrap();
        assert_eq!(err(kv.finish()), "-rtc: unknown or unsupported key 'bsae'; did you mean base?");
        let mut kv = KeyValues::parse("-m", "a=maybe", None).unwrap();
        assert_eq!(kv.take_switch("a").unwrap_err().to_string(), "-m a=maybe: 'maybe' is neither on nor off");
        let mut kv = KeyValues::parse("-machine", "usb=on", None).unwrap();
        assert_eq!(
            err(kv.take_fixed("usb", false, "USB is not supported yet")),
            "-machine usb=on: USB is not supported yet; use usb=off"
        );
        assert!(KeyValues::parse("-x", "a=1,,,b=2", None).is_ok(), "three commas: a literal one and a separator");
        assert!(KeyValues::parse("-x", "a=1,", None).is_err());
        assert!(KeyValues::parse("-x", "=1", None).is_err());
    }
}
