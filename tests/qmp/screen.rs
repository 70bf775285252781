//! Pictures of the screen, and what clients ask about displays.

use super::harness::{Machine, Scratch};
use serde_json::json;
use std::fs;

#[test]
fn the_screen_is_saved_as_ppm_and_png() {
    let scratch = Scratch::new("screen-files");
    let machine = Machine::start("screen", &["-vga", "std"]);
    let mut client = machine.client();
    let [ppm, png] = ["a.ppm", "a.png"].map(|name| scratch.path(name));
    client.run("screendump", json!({ "filename": ppm })).unwrap();
    let bytes = fs::read(&ppm).expect("a picture");
    let head = b"P6\n720 400\n255\n";
    assert!(bytes.starts_with(head) && bytes.len() == head.len() + 720 * 400 * 3, "a screen that is off is black");
    // A mode of the display interface.
    for (index, value) in [(1, 64), (2, 32), (3, 32), (4, 0x41)] {
        client.hmp(&format!("o/h 0x1ce {index}"));
        client.hmp(&format!("o/h 0x1cf {value}"));
    }
    assert_eq!(client.hmp(&format!("screendump {ppm}")), "");
    assert!(fs::read(&ppm).expect("a picture").starts_with(b"P6\n64 32\n255\n"));
    assert_eq!(client.hmp(&format!("screendump -f png {png} VGA 0")), "");
    let bytes = fs::read(&png).expect("a picture");
    // Signature, then width and height in the first chunk (PNG 5.2, 11.2.1).
    assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n") && bytes[16..24] == [0, 0, 0, 64, 0, 0, 0, 32], "{bytes:?}");
    let (_, why) = client.run("screendump", json!({ "filename": "/nowhere/a.ppm" })).unwrap_err();
    assert_eq!(why, "failed to open file '/nowhere/a.ppm': no such file or directory");
    let (class, why) = client.run("screendump", json!({ "filename": ppm, "device": "x" })).unwrap_err();
    assert_eq!((class.as_str(), why.as_str()), ("DeviceNotFound", "Device 'x' not found"));
    assert!(client.run("screendump", json!({ "filename": ppm, "format": "gif" })).is_err());
    assert!(client.hmp(&format!("screendump -f gif {ppm}")).contains("does not accept value 'gif'"));
}

#[test]
fn there_is_no_screen_without_a_card_and_no_server() {
    let machine = Machine::start("no-screen", &["-S"]);
    let mut client = machine.client();
    let (_, why) = client.run("screendump", json!({ "filename": "/dev/null" })).unwrap_err();
    assert_eq!(why, "There is no console to take a screendump from");
    assert_eq!(client.run("query-vnc", json!({})), Ok(json!({ "enabled": false })));
    assert_eq!(client.run("query-vnc-servers", json!({})), Ok(json!([])));
    assert_eq!(client.run("query-display-options", json!({})), Ok(json!({ "type": "none" })));
    assert_eq!(client.hmp("info vnc"), "None\n");
}
