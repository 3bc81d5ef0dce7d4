/*
 * HTML pages in attachments that do what a linked page would be blocked for.
 */

rule html_smuggling
{
    meta:
        name = "Carrier.HTML-Smuggling"
        description = "a page that builds a file from its own text and saves it"
        kind = "suspicious"
        score = 8
    strings:
        $script = "<script" ascii nocase
        $decode1 = "atob(" ascii
        $decode2 = "Uint8Array" ascii
        $blob = /new\s+Blob\s*\(/ ascii
        $url1 = "createObjectURL" ascii
        $url2 = "msSaveOrOpenBlob" ascii
        $save = /\.download\s*=|setAttribute\s*\(\s*['"]download['"]|msSaveOrOpenBlob\s*\(/ ascii
        $click = ".click(" ascii
        $long = /['"`][A-Za-z0-9+\/]{2000}/ ascii
    condition:
        filename != "" and filesize < 20MB and
        $script and any of ($decode*) and $blob and any of ($url*) and $save and
        ($click or $url2) and $long
}

rule password_form_to_an_address
{
    meta:
        name = "Phishing.Form-To-Address"
        description = "a form that sends a password to a bare internet address"
        kind = "phishing"
        score = 8
    strings:
        $form = /<form\s[^>]{0,300}action\s*=\s*["']?https?:\/\/[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}[:\/"']/ ascii nocase
        $inside = /<form\s[^>]{0,300}action\s*=\s*["']?https?:\/\/(10\.|127\.|192\.168\.|172\.(1[6-9]|2[0-9]|3[01])\.)/ ascii nocase
        $password = /<input\s[^>]{0,300}type\s*=\s*["']?password/ ascii nocase
    condition:
        $form and $password and not $inside
}
