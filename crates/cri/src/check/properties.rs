//! What holds for every text that a check lets through, whatever it is made of.

use std::collections::HashMap;
use std::path::{Component, Path};

use api::cri::v1::NamespaceOption;
use proptest::prelude::*;

use super::{Field, id, security, text};

/// Texts near the border: letters, separators, dots, control characters, and now and then anything.
fn near() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9./_: \\n\\x00-]{0,12}",
        "(/|\\.\\.|\\.|[a-z]{1,4}|//){0,8}",
        "(net|kernel|fs)[.](shm|msg|sem|mqueue)?([./]{1,2}[a-z_.]{0,6}){0,4}",
        any::<String>(),
    ]
}

fn leaves(path: &str) -> bool {
    Path::new(path).components().any(|c| matches!(c, Component::ParentDir))
}

proptest! {
    #[test]
    fn a_name_is_one_file_name(value in near()) {
        if text::name(Field::of("f"), &value).is_ok() {
            prop_assert_eq!(Path::new(&value).components().count(), 1);
            prop_assert!(!value.contains(['/', '\0', '\n']) && value != "." && value != "..");
        }
    }

    #[test]
    fn a_path_stays_where_it_is(value in near()) {
        if text::absolute(Field::of("f"), &value).is_ok() {
            prop_assert!(Path::new(&value).is_absolute() && !leaves(&value) && !value.contains('\0'));
        }
        if text::relative(Field::of("f"), &value).is_ok() {
            prop_assert!(Path::new(&value).is_relative() && !leaves(&value) && !value.contains('\0'));
        }
    }

    #[test]
    fn a_line_is_one_line(value in near()) {
        if text::word(Field::of("f"), &value).is_ok() || text::hostname(Field::of("f"), &value).is_ok() {
            prop_assert_eq!(format!("a {value} b").lines().count(), 1);
        }
    }

    #[test]
    fn an_id_names_no_path(value in near()) {
        if id::lookup(Field::of("f"), &value).is_ok() {
            prop_assert!(!value.contains(['/', '.']));
        }
    }

    /// A name becomes a path below /proc/sys by swapping dots and slashes.
    #[test]
    fn a_sysctl_stays_below_its_directory(key in near()) {
        let given = HashMap::from([(key.clone(), "1".to_owned())]);
        if security::sysctls(Field::of("f"), &given, &NamespaceOption::default()).is_ok() {
            let path: String = key.chars().map(|c| match c { '.' => '/', '/' => '.', c => c }).collect();
            prop_assert!(!leaves(&path), "{}", path);
            let owned = ["net/", "kernel/shm", "kernel/msg", "kernel/sem", "fs/mqueue/"];
            prop_assert!(owned.iter().any(|p| path.starts_with(p)), "{}", path);
        }
    }

    #[test]
    fn a_complaint_is_one_short_line(value in any::<String>()) {
        let complaint = Field::of("f").wrong(&value, "right").to_string();
        prop_assert!(complaint.len() < 500 && complaint.lines().count() == 1, "{}", complaint);
    }
}
