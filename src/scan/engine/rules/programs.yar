/*
 * Programs that hide their type, and small files that start programs.
 * The scores of all findings are added. The kind is "malware" only if such a file has no legitimate use.
 */

rule program_named_as_document
{
    meta:
        name = "Carrier.Program-Named-As-Document"
        description = "a Windows program with the name of a document"
        kind = "malware"
        score = 10
    condition:
        uint16(0) == 0x5A4D and
        uint32(0x3C) < filesize and
        uint32(uint32(0x3C)) == 0x00004550 and
        filename matches /\.(pdf|docx?|xlsx?|pptx?|rtf|txt|csv|jpe?g|png|gif|html?|mp3|mp4|zip)["\s]*$/i
}

rule program_with_two_extensions
{
    meta:
        name = "Carrier.Double-Extension"
        description = "the name of a document before the extension of a program"
        kind = "suspicious"
        score = 5
    condition:
        filename matches /\.(pdf|docx?|xlsx?|pptx?|rtf|txt|csv|jpe?g|png|gif|mp3|mp4)[\s_.]*\.(exe|scr|com|pif|bat|cmd|vbs|vbe|js|jse|wsf|hta|lnk|ps1|msi|cpl)["\s.]*$/i
}

rule shortcut_that_runs_a_shell
{
    meta:
        name = "Carrier.Shortcut-Shell"
        description = "a shortcut that starts a script or a download"
        kind = "malware"
        score = 10
    strings:
        $powershell = "powershell" ascii wide nocase
        $mshta = "mshta" ascii wide nocase
        $certutil = "certutil" ascii wide nocase
        $bitsadmin = "bitsadmin" ascii wide nocase
        $wscript = "wscript" ascii wide nocase
    condition:
        uint32(0) == 0x0000004C and
        uint32(4) == 0x00021401 and
        filesize < 1MB and
        any of them
}

rule powershell_encoded_command
{
    meta:
        name = "Script.PowerShell-Encoded"
        description = "a script that runs an encoded PowerShell command"
        kind = "suspicious"
        score = 8
    strings:
        $ = /powershell(\.exe)?["' \t][^\r\n]{0,200}[ \t][\-\/]e(n|nc|nco|ncodedcommand)?[ \t]+["']?[A-Za-z0-9+\/=]{100}/ ascii wide nocase
    condition:
        filename != "" and filesize < 5MB and uint16(0) != 0x5A4D and any of them
}

rule powershell_download
{
    meta:
        name = "Script.PowerShell-Download"
        description = "a script that downloads and runs"
        kind = "suspicious"
        score = 8
    strings:
        $get1 = ".DownloadString(" ascii wide nocase
        $get2 = ".DownloadFile(" ascii wide nocase
        $get3 = "Invoke-WebRequest" ascii wide nocase
        $run1 = "IEX" ascii wide fullword nocase
        $run2 = "Invoke-Expression" ascii wide nocase
        $run3 = "Start-Process" ascii wide nocase
        $hide = /-w(indowstyle)?[ \t]+(h(idden)?|1)\b/ ascii wide nocase
    condition:
        filename != "" and filesize < 5MB and uint16(0) != 0x5A4D and
        any of ($get*) and any of ($run*) and $hide
}

rule script_host_dropper
{
    meta:
        name = "Script.Dropper"
        description = "a script that downloads a file and starts it"
        kind = "suspicious"
        score = 8
    strings:
        $shell1 = "WScript.Shell" ascii wide nocase
        $shell2 = "Shell.Application" ascii wide nocase
        $get1 = "MSXML2.XMLHTTP" ascii wide nocase
        $get2 = "MSXML2.ServerXMLHTTP" ascii wide nocase
        $get3 = "WinHttp.WinHttpRequest" ascii wide nocase
        $save1 = "ADODB.Stream" ascii wide nocase
        $save2 = "SaveToFile" ascii wide nocase
    condition:
        filename != "" and filesize < 5MB and uint16(0) != 0x5A4D and
        any of ($shell*) and any of ($get*) and all of ($save*)
}

rule disk_image_with_program
{
    meta:
        name = "Carrier.Disk-Image"
        description = "a disk image that holds a program or a script"
        kind = "suspicious"
        score = 8
    strings:
        $volume = "CD001"
        $iso = /\.(EXE|SCR|LNK|JS|VBS|BAT|CMD|HTA|DLL);1/
        $joliet = /\x00\.\x00(e\x00x\x00e|s\x00c\x00r|l\x00n\x00k|v\x00b\x00s|b\x00a\x00t|h\x00t\x00a)\x00/ nocase
    condition:
        $volume at 0x8001 and ($iso or $joliet)
}
