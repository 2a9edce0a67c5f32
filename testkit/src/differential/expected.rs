//! What a reference answered, in a file beside the corpus: a line of JSON for each case. The
//! result of a base stands there in whole, results of cases as their difference from it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::edit::write;
use super::{Case, Corpus, Error, Observation, differences};

/// Recorded answers by case.
#[derive(Debug, Default)]
pub struct Expected {
    lines: BTreeMap<String, Vec<Line>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Line {
    code: u16,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    /// What webhooks were asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    asked: Vec<Value>,
    /// The answer in whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<Value>,
    /// What differs from the base's: pointer → value.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    set: Map<String, Value>,
    /// Pointers that the base has and this answer has not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gone: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    case: String,
    steps: Vec<Line>,
}

impl Expected {
    pub fn read(corpus: &Corpus) -> Result<Self, Error> {
        let file = corpus.file.with_extension("expected.jsonl");
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let mut lines = BTreeMap::new();
        for line in text.lines() {
            let entry: Entry = serde_json::from_str(line).map_err(|e| Error::Corpus {
                path: file.display().to_string(),
                reason: e.to_string(),
            })?;
            lines.insert(entry.case, entry.steps);
        }
        Ok(Self { lines })
    }

    /// The answers to a case's steps; `None` if it was never recorded.
    pub fn answers(&self, case: &Case) -> Option<Vec<Observation>> {
        let base = self.base(case);
        let steps = self.lines.get(&case.name)?;
        Some(steps.iter().map(|line| line.whole(base)).collect())
    }

    /// Takes what the reference answered. Bases are to be recorded before the cases from them.
    pub fn record(&mut self, case: &Case, answers: &[Observation]) {
        let base = self.base(case).filter(|_| !is_base(case));
        let steps = answers.iter().map(|a| Line::of(a, base)).collect();
        self.lines.insert(case.name.clone(), steps);
    }

    /// Writes the cases that the corpus has now, in its order.
    pub fn write(&self, corpus: &Corpus) -> std::io::Result<()> {
        let mut text = String::new();
        for case in &corpus.cases {
            if let Some(steps) = self.lines.get(&case.name) {
                let entry = Entry {
                    case: case.name.clone(),
                    steps: steps.clone(),
                };
                text.push_str(&serde_json::to_string(&entry)?);
                text.push('\n');
            }
        }
        std::fs::write(corpus.file.with_extension("expected.jsonl"), text)
    }

    fn base(&self, case: &Case) -> Option<&Value> {
        let lines = self.lines.get(&format!("bases/{}", case.base))?;
        lines.first()?.body.as_ref()
    }
}

fn is_base(case: &Case) -> bool {
    case.name == format!("bases/{}", case.base)
}

impl Line {
    fn of(answer: &Observation, base: Option<&Value>) -> Self {
        let mut line = Self {
            code: answer.code,
            warnings: answer.warnings.clone(),
            asked: answer.asked.clone(),
            body: None,
            set: Map::new(),
            gone: Vec::new(),
        };
        match base.filter(|base| base.get("kind") == answer.body.get("kind")) {
            None => line.body = Some(answer.body.clone()),
            Some(base) => {
                for d in differences(base, &answer.body) {
                    match d.right {
                        Some(value) => _ = line.set.insert(d.at, value),
                        None => line.gone.push(d.at),
                    }
                }
            }
        }
        line
    }

    fn whole(&self, base: Option<&Value>) -> Observation {
        let body = self.body.clone().unwrap_or_else(|| {
            let mut body = base.cloned().unwrap_or_default();
            for (at, value) in &self.set {
                write(&mut body, at, Some(value)).expect("a recorded place exists");
            }
            for at in &self.gone {
                write(&mut body, at, None).expect("a recorded place exists");
            }
            body
        });
        Observation {
            code: self.code,
            warnings: self.warnings.clone(),
            asked: self.asked.clone(),
            body,
        }
    }
}

/// The cases of the corpus that are known to differ.
pub fn known_differences(corpus: &Corpus) -> BTreeSet<String> {
    let text = std::fs::read_to_string(corpus.file.with_extension("differs.txt"));
    let text = text.unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}
