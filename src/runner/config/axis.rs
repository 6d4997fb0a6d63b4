//! What tests are combined with: kernels, machines, roots, each with a label. Here globs become kernels.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use toml::Value;

use super::keys::Section;
use super::layer::Layer;
use super::paths;
use super::read::{Named, is_in_names};
use super::source::Problems;

/// Label of what a file says nothing about.
pub(super) const DEFAULT: &str = "default";

/// All kernels, machines or roots.
#[derive(Debug)]
pub(super) struct Axis {
    pub(super) variants: Vec<Variant>,
    /// The file has tables of this kind: the label is part of ids, however many there are.
    pub(super) written: bool,
}

/// One kernel, machine or root.
#[derive(Debug)]
pub(super) struct Variant {
    pub(super) label: String,
    pub(super) layer: Layer,
}

/// Finds the files that a pattern stands for; an error if it is none.
pub(super) type Glob<'a> = &'a dyn Fn(&str) -> Result<Vec<PathBuf>, String>;

impl Axis {
    fn new(section: Section, variants: Vec<Variant>, written: bool, problems: &mut Problems) -> Self {
        let mut labels = BTreeSet::new();
        for variant in &variants {
            if !labels.insert(variant.label.as_str()) {
                let text = format!("two {}s are called `{}`: give one a `name`", section.name(), variant.label);
                problems.add(variant.layer.place, text);
            }
        }
        if !written {
            let default = Variant { label: DEFAULT.into(), layer: Layer::default() };
            return Self { variants: vec![default], written };
        }
        Self { variants, written }
    }

    /// The labels, for patterns.
    pub(super) fn labels(&self) -> BTreeSet<&str> {
        self.variants.iter().map(|variant| variant.label.as_str()).collect()
    }

    /// Machines or roots.
    pub(super) fn plain(section: Section, list: &[Named], problems: &mut Problems) -> Self {
        let derive: fn(&Layer) -> Option<String> = if section == Section::Root { root_label } else { machine_label };
        let mut variants = Vec::new();
        for Named { name, layer } in list {
            match name.clone().or_else(|| derive(layer)) {
                Some(label) => variants.push(Variant { label, layer: layer.clone() }),
                None => problems.add(layer.place, format!("{} needs a `name`", section.title())),
            }
        }
        Self::new(section, variants, !list.is_empty(), problems)
    }

    /// Kernels; a glob is one for each file or directory that it finds below `base`.
    pub(super) fn kernels(list: &[Named], base: &Path, glob: Glob<'_>, problems: &mut Problems) -> Self {
        let mut variants = Vec::new();
        for Named { name, layer } in list {
            let kernel = layer.values.get("kernel").and_then(Value::as_str);
            match (kernel, name) {
                (Some(text), _) if text.contains(['*', '?', '[']) && !base.join(text).exists() => {
                    variants.extend(expand(text, name.as_deref(), layer, base, glob, problems));
                }
                (_, Some(label)) => variants.push(Variant { label: label.clone(), layer: layer.clone() }),
                (Some(text), None) => variants.push(Variant { label: label(text), layer: layer.clone() }),
                (None, None) => problems.add(layer.place, "[[kernel]] needs a `kernel`, or a `name` for another one"),
            }
        }
        Self::new(Section::Kernel, variants, !list.is_empty(), problems)
    }
}

fn expand(
    text: &str,
    name: Option<&str>,
    layer: &Layer,
    base: &Path,
    glob: Glob<'_>,
    problems: &mut Problems,
) -> Vec<Variant> {
    let at = layer.places.get("kernel").copied().unwrap_or(layer.place);
    let whole = paths::at(Path::new(&glob::Pattern::escape(&base.to_string_lossy())), Path::new(text));
    let found = glob(&whole.to_string_lossy()).unwrap_or_else(|error| {
        problems.add(at, format!("`kernel`: `{text}` is no pattern: {error}"));
        Vec::new()
    });
    if found.is_empty() {
        problems.add(at, format!("`kernel`: `{text}` matches no file or directory in {}", base.display()));
    }
    let variant = |path: PathBuf| {
        let (path, varies) = (path.to_string_lossy().into_owned(), varying(text, &path));
        let label = name.map_or_else(|| label(&varies), |name| format!("{name}-{}", label(&varies)));
        let mut layer = layer.clone();
        layer.values.insert("kernel".into(), Value::String(path));
        Variant { label, layer }
    };
    found.into_iter().map(variant).collect()
}

/// The part of `path` that the wildcards of `pattern` stand for, from the first to the last of them. So a label does not
/// depend on what else there is.
fn varying(pattern: &str, path: &Path) -> String {
    let parts: Vec<_> = pattern.split('/').filter(|part| !part.is_empty()).collect();
    let fixed = |part: &&&str| !part.contains(['*', '?', '[']);
    let behind = parts.iter().rev().take_while(fixed).count();
    let varying = parts.len().saturating_sub(behind + parts.iter().take_while(fixed).count());
    let all: Vec<_> = path.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    // What `**` stands for has any length: then it is all before what is fixed at the end.
    let wanted = if pattern.contains("**") { varying.max(2) } else { varying };
    let end = all.len().saturating_sub(behind);
    all.get(end.saturating_sub(wanted)..end).unwrap_or_default().join("-")
}

/// A short name for a kernel: that of its build tree, or the release in the name of its file.
pub(super) fn label(kernel: &str) -> String {
    let parts: Vec<_> = kernel.split('/').filter(|part| !matches!(*part, "" | "." | ".." | "~")).collect();
    let in_trees = |part: &&&str| ["bzImage", "vmlinux", "boot", "x86", "x86_64", "arch"].contains(*part);
    let name = parts.iter().rev().find(|part| !in_trees(part)).or(parts.last()).copied().unwrap_or("kernel");
    let package = name.strip_suffix(".deb").map(|name| name.split('_').next().unwrap_or(name));
    let name = package.or_else(|| name.strip_suffix(".rpm")).unwrap_or(name);
    let prefixes = ["linux-image-", "vmlinuz-", "vmlinux-", "bzImage-"];
    let name = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    as_name(name)
}

/// The text as a part of ids.
pub(super) fn as_name(text: &str) -> String {
    let text = text.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    let name: String = text.chars().take(40).map(|c| if is_in_names(c) { c } else { '-' }).collect();
    if name.is_empty() { "unnamed".into() } else { name }
}

fn machine_label(layer: &Layer) -> Option<String> {
    let text = |key: &str| {
        let value = layer.values.get(key)?;
        value.as_str().map(str::to_owned).or_else(|| Some(value.as_integer()?.to_string()))
    };
    let cpus = text("cpus").map(|cpus| format!("{cpus}cpu{}", if cpus == "1" { "" } else { "s" }));
    let parts: Vec<_> = cpus.into_iter().chain(text("memory")).collect();
    (!parts.is_empty()).then(|| as_name(&parts.join("-")))
}

fn root_label(layer: &Layer) -> Option<String> {
    let path = layer.values.get("root").or_else(|| layer.values.get("disk-root"))?.as_str()?;
    let name = Path::new(path).file_name();
    Some(name.map_or_else(|| "host".into(), |name| as_name(&name.to_string_lossy())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_called_by_what_tells_them_apart() {
        for (kernel, expected) in [
            ("/boot/vmlinuz-6.1.0-18-amd64", "6.1.0-18-amd64"),
            ("../linux/arch/x86/boot/bzImage", "linux"),
            ("~/src/linux-next", "linux-next"),
            ("arch/x86/boot/bzImage", "bzImage"),
            ("linux-image-6.1.0-18-cloud-amd64_6.1.76-1_amd64.deb", "6.1.0-18-cloud-amd64"),
            ("6.12.1", "6.12.1"),
            ("/", "kernel"),
            ("my kernel#1", "my-kernel-1"),
        ] {
            assert_eq!(label(kernel), expected, "{kernel}");
        }
    }

    #[test]
    fn what_varies_does_not_depend_on_what_else_is_there() {
        let varying = |pattern: &str, path: &str| label(&varying(pattern, Path::new(path)));
        assert_eq!(varying("/boot/vmlinuz-*", "/boot/vmlinuz-6.1"), "6.1");
        assert_eq!(varying("build-*/arch/x86/boot/bzImage", "/s/build-kasan/arch/x86/boot/bzImage"), "build-kasan");
        assert_eq!(varying("out/*/x?/bzImage", "/s/out/6.1/x2/bzImage"), "6.1-x2");
        assert_eq!(varying("**/bzImage", "/s/a/b/bzImage"), "a-b");
        assert_eq!(varying("*", "/s/linux"), "linux");
    }
}
