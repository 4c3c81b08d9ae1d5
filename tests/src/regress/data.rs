//! What is in the files that the scripts load: of the same shape, and made here.

use std::fmt::Write;

/// The rows of a table that a script loads from a file, as `COPY … FROM stdin` takes them; `None`: it is none of these.
pub fn rows(table: &str) -> Option<String> {
    Some(match table {
        "onek" => numbers(1000),
        "tenk1" => numbers(10_000),
        "aggtest" => "56\t7.8\n100\t99.097\n0\t0.09561\n42\t324.78\n".to_owned(),
        "person" => people(58, |_, line| line),
        "emp" => people(3, |i, line| format!("{line}\t{}\tmgr{}", 600 * (i + 1), i % 2)),
        "student" => people(2, |i, line| format!("{line}\t{}.5", i + 1)),
        "stud_emp" => people(3, |i, line| format!("{line}\t{}\tmgr{}\t2.{i}\t{}", 400 + i, i % 2, i * 10)),
        "road" => roads(),
        "array_op_test" => arrays(100),
        "testjsonb" => documents(1000),
        _ => return None,
    })
}

/// The Wisconsin benchmark's table: each column has as many values as its name says.
fn numbers(rows: u32) -> String {
    let mut text = String::new();
    for second in 0..rows {
        let first = (second * 7919 + 8800) % rows;
        let modulo = |n| first % n;
        let columns = [
            first,
            second,
            modulo(2),
            modulo(4),
            modulo(10),
            modulo(20),
            modulo(100),
            modulo(1000),
            modulo(2000),
            modulo(5000),
            modulo(10_000),
            modulo(100) * 2 + 1,
            modulo(100) * 2,
        ];
        for column in columns {
            let _ = write!(text, "{column}\t");
        }
        let last = ["AAAAxx", "HHHHxx", "OOOOxx", "VVVVxx"][second as usize % 4];
        let _ = writeln!(text, "{}\t{}\t{last}", letters(first), letters(second));
    }
    text
}

/// A number in letters, lowest first, in the way of that benchmark.
fn letters(mut number: u32) -> String {
    let mut name = String::new();
    for _ in 0..6 {
        name.push(char::from(b'A' + u8::try_from(number % 26).unwrap_or(0)));
        number /= 26;
    }
    name
}

fn people(rows: u32, more: impl Fn(u32, String) -> String) -> String {
    let mut text = String::new();
    for i in 0..rows {
        let line = format!("name{i}\t{}\t({},{})", 18 + i * 7 % 60, i, i * 3 % 17);
        let _ = writeln!(text, "{}", more(i, line));
    }
    text
}

fn roads() -> String {
    let mut text = String::new();
    for i in 0..300 {
        let name = match i % 5 {
            0 => format!("I- {}", i % 20),
            1 => format!("State Hwy {}", i % 30),
            _ => format!("Street {i}"),
        };
        let _ = writeln!(text, "{name}\t[(-{i}.5,37.{i}),(-{i}.25,38)]");
    }
    text
}

fn arrays(rows: u32) -> String {
    let mut text = String::new();
    for i in 1..=rows {
        let numbers: Vec<String> = (0..i % 8).map(|j| (i * 13 * (j + 1) % 100).to_string()).collect();
        let words: Vec<String> = (0..i % 7).map(|j| format!("AAAAAA{}", i * 17 * (j + 1) % 99_999)).collect();
        let _ = writeln!(text, "{i}\t{{{}}}\t{{{}}}", numbers.join(","), words.join(","));
    }
    text
}

fn documents(rows: u32) -> String {
    let mut text = String::new();
    for i in 0..rows {
        let _ = match i % 6 {
            0 => writeln!(text, r#"{{"line": {i}, "date": "CB", "node": "AA{}"}}"#, i % 7),
            1 => writeln!(text, r#"{{"line": {i}, "disabled": false, "public": true, "wait": null}}"#),
            2 => writeln!(text, r#"{{"cleaned": false, "status": {}, "age": {}}}"#, i % 80, i % 40),
            3 => writeln!(text, r#"{{"wait": "CC", "user": "BB{}", "coauthors": ["A", {i}]}}"#, i % 9),
            4 => writeln!(text, r#"{{"title": {{"a": [1, {i}, null]}}, "pos": {}.50}}"#, i % 30),
            _ => writeln!(text, "{{}}"),
        };
    }
    text
}
