//! `spillway scan`: what would be done with a file.

use super::*;

/// Verdicts without SMTP, and exit codes that a script can act on.
#[test]
fn scan_tells_what_would_be_done() {
    let store = Fabricated::new();
    let folder = tempfile::tempdir().expect("folder");
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("writes");
        path.display().to_string()
    };
    let head = "From: a@example.org\nSubject: x\nMIME-Version: 1.0\nContent-Type: text/plain\n\n";
    let clean = file("clean.eml", &format!("{head}Hello.\n"));
    let eicar = file("eicar.eml", &format!("{head}{}\n", EICAR.concat()));
    let gone = format!("{clean}.gone");
    for (files, exit, told) in [
        (&[&clean][..], 0, "clean.eml: clean\n"),
        (&[&eicar], 1, "eicar.eml: malicious\n"),
        (&[&clean, &eicar], 1, "policy.malware"),
        (&[&gone, &clean], 2, "not scanned: No such file"),
        (&[&gone, &eicar], 1, "malicious"),
    ] {
        let mut arguments = vec!["scan"];
        arguments.extend(files.iter().map(|file| file.as_str()));
        let ran = store.run(None, &arguments, "");
        assert_eq!(ran.exit, exit, "{files:?}: {}{}", ran.out, ran.err);
        assert!(ran.out.contains(told), "{}", ran.out);
    }
    let piped = store.run(
        None,
        &["scan", "-", "--json"],
        &format!("{head}{}\n", EICAR.concat()),
    );
    assert_eq!(piped.exit, 1);
    let scanned: serde_json::Value = serde_json::from_str(&piped.out).expect("JSON");
    assert_eq!(
        scanned[0]["groups"][0]["decision"]["disposition"],
        "quarantine"
    );
    assert_eq!(scanned[0]["reports"].as_array().map(Vec::len), Some(2));
}

/// A rule on attachments sees every name that a reader might show, and holds for the path and for `scan` alike.
#[test]
fn rules_see_attachments() {
    let folder = tempfile::tempdir().expect("folder");
    let config = folder.path().join("spillway.toml");
    let rule = "[[rule]]\nname = \"macros\"\nattachment_name = [\"*.xlsm\"]\nthen = \"reject\"\n";
    std::fs::write(&config, rule).expect("writes");
    let mail = folder.path().join("mail.eml");
    std::fs::write(
        &mail,
        "From: a@example.org\nMIME-Version: 1.0\nContent-Type: application/octet-stream; name=\"b.xlsm\"\n\
         Content-Disposition: attachment; filename=\"b.txt\"\n\ndata\n",
    )
    .expect("writes");
    let path = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let output = program(&["--config", &path(&config), "scan", &path(&mail), "--json"]);
    let scanned: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let decision = &scanned[0]["groups"][0]["decision"];
    assert_eq!(decision["rule"], "macros", "{decision}");
    assert_eq!(decision["disposition"], "reject");
}
