//! Where in the source something is, as kernel developers write it: relative to the tree.

/// `path` without the tree's `root` before it and without detours: `/src/linux/./mm/../mm/slub.c` is `mm/slub.c`.
pub(super) fn relative(path: &str, root: &str) -> String {
    let path = straight(path);
    let root = straight(root);
    let inside = path.strip_prefix(root.as_str()).and_then(|rest| rest.strip_prefix('/'));
    match inside {
        Some(inside) if !root.is_empty() => inside.to_owned(),
        _ => path,
    }
}

/// Without `.`, `..` and empty parts.
fn straight(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let begin = if path.starts_with('/') { "/" } else { "" };
    format!("{begin}{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_the_tree() {
        for (path, root, expected) in [
            ("/src/linux/mm/slub.c", "/src/linux", "mm/slub.c"),
            ("/src/linux/./include/../mm/slub.c", "/src/linux/", "mm/slub.c"),
            ("/src/linux-other/mm/slub.c", "/src/linux", "/src/linux-other/mm/slub.c"),
            ("/src/linux/build/../mm/slub.c", "/src/linux/build", "/src/linux/mm/slub.c"),
            ("./include/linux/list.h", "/src/linux", "include/linux/list.h"),
            ("../x.c", "", "../x.c"),
            ("/usr/include/x.h", "", "/usr/include/x.h"),
        ] {
            assert_eq!(relative(path, root), expected, "{path} {root}");
        }
    }
}
