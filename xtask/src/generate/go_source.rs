//! What only the Go structs say: pointers, `omitempty`, `omitzero`, names of scalar types.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

#[derive(Debug, Clone, Default)]
pub(crate) struct Field {
    pub(crate) pointer: bool,
    pub(crate) omit_empty: bool,
    pub(crate) omit_zero: bool,
    /// As written in the source, pointer removed.
    pub(crate) go_type: String,
}

#[derive(Default)]
struct Package {
    structs: HashMap<String, Vec<Member>>,
}

struct Member {
    /// `None` for an embedded struct whose fields are promoted.
    json_name: Option<String>,
    field: Field,
}

/// Packages are parsed when first asked for.
pub(crate) struct Packages {
    source: PathBuf,
    parsed: RefCell<HashMap<String, Rc<Package>>>,
}

impl Packages {
    pub(crate) fn new(source: &Path) -> Packages {
        Packages {
            source: source.to_owned(),
            parsed: RefCell::default(),
        }
    }

    /// Fields of a type by JSON name, promoted ones included. `package` is `io.k8s.api.core.v1`.
    pub(crate) fn fields(&self, package: &str, name: &str) -> BTreeMap<String, Field> {
        let mut out = BTreeMap::new();
        self.collect(package, name, &mut out, 0);
        out
    }

    fn collect(&self, package: &str, name: &str, out: &mut BTreeMap<String, Field>, depth: usize) {
        let parsed = self.package(package);
        for m in parsed.structs.get(name).into_iter().flatten() {
            match &m.json_name {
                Some(json) => {
                    out.entry(json.clone()).or_insert_with(|| m.field.clone());
                }
                None if depth < 4 => match m.field.go_type.split_once('.') {
                    Some(("metav1", n)) => {
                        self.collect("io.k8s.apimachinery.pkg.apis.meta.v1", n, out, depth + 1);
                    }
                    Some(("v1", n)) => {
                        let p = if package.contains("api.admissionregistration") {
                            "io.k8s.api.admissionregistration.v1"
                        } else {
                            "io.k8s.api.core.v1"
                        };
                        self.collect(p, n, out, depth + 1);
                    }
                    _ => self.collect(package, &m.field.go_type, out, depth + 1),
                },
                None => {}
            }
        }
    }

    fn package(&self, package: &str) -> Rc<Package> {
        if let Some(p) = self.parsed.borrow().get(package) {
            return p.clone();
        }
        let relative = package.trim_start_matches("io.k8s.").replace('.', "/");
        let dir = self.source.join("staging/src/k8s.io").join(relative);
        let mut p = Package::default();
        let mut files: Vec<PathBuf> = fs::read_dir(&dir)
            .map(|d| d.filter_map(|e| e.ok().map(|e| e.path())).collect())
            .unwrap_or_default();
        files.sort();
        for f in files {
            let name = f.file_name().and_then(|n| n.to_str()).unwrap_or("");
            let generated = name.starts_with("zz_") || name.starts_with("generated");
            if name.ends_with(".go") && !name.ends_with("_test.go") && !generated {
                parse(&fs::read_to_string(&f).unwrap_or_default(), &mut p);
            }
        }
        let p = Rc::new(p);
        self.parsed
            .borrow_mut()
            .insert(package.to_owned(), p.clone());
        p
    }
}

fn parse(text: &str, package: &mut Package) {
    let mut current: Option<(String, Vec<Member>)> = None;
    for line in text.lines() {
        if let Some((name, mut members)) = current.take() {
            if line.starts_with('}') {
                package.structs.insert(name, members);
                continue;
            }
            members.extend(member(line));
            current = Some((name, members));
        } else if let Some(rest) = line.strip_prefix("type ")
            && let Some(name) = rest.trim_end().strip_suffix(" struct {")
        {
            current = Some((name.to_owned(), Vec::new()));
        } else if let Some(rest) = line.strip_prefix("type ")
            && let Some((name, target)) = rest.trim_end().split_once(' ')
            && target
                .trim_start_matches("= ")
                .chars()
                .all(|c| c.is_alphanumeric() || c == '.')
        {
            // A type made from another has that one's fields.
            let go_type = target.trim_start_matches("= ").to_owned();
            let field = Field {
                go_type,
                ..Field::default()
            };
            package.structs.insert(
                name.to_owned(),
                vec![Member {
                    json_name: None,
                    field,
                }],
            );
        }
    }
}

fn member(line: &str) -> Option<Member> {
    let line = line.trim();
    if line.starts_with("//") {
        return None;
    }
    let (declaration, tags) = line.split_once('`')?;
    let json = tags.split_once("json:\"")?.1.split_once('"')?.0;
    let mut options = json.split(',');
    let json_name = options.next().unwrap_or("");
    let options: Vec<&str> = options.collect();
    let words: Vec<&str> = declaration.split_whitespace().collect();
    let go_type = match words.as_slice() {
        [one] => (*one).to_owned(),
        [_, rest @ ..] => rest.join(" "),
        [] => return None,
    };
    if json_name == "-" {
        return None;
    }
    Some(Member {
        json_name: (!json_name.is_empty()).then(|| json_name.to_owned()),
        field: Field {
            pointer: go_type.starts_with('*'),
            omit_empty: options.contains(&"omitempty"),
            omit_zero: options.contains(&"omitzero"),
            go_type: go_type.trim_start_matches('*').to_owned(),
        },
    })
}
