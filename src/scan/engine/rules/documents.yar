/*
 * Documents that run or fetch something when they are opened.
 */

rule office_macro_that_downloads
{
    meta:
        name = "Macro.Auto-Open-Shell"
        description = "a macro that runs by itself and starts or fetches something"
        kind = "suspicious"
        score = 8
    strings:
        $project = "_VBA_PROJECT" ascii wide
        $auto1 = "AutoOpen" ascii wide nocase
        $auto2 = "Auto_Open" ascii wide nocase
        $auto3 = "AutoExec" ascii wide nocase
        $auto4 = "Document_Open" ascii wide nocase
        $auto5 = "Workbook_Open" ascii wide nocase
        $act1 = "URLDownloadToFile" ascii wide nocase
        $act2 = "WScript.Shell" ascii wide nocase
        $act3 = "powershell" ascii wide nocase
        $act4 = "MSXML2.XMLHTTP" ascii wide nocase
        $act5 = "ADODB.Stream" ascii wide nocase
        $act6 = "ShellExecute" ascii wide nocase
    condition:
        uint32(0) == 0xE011CFD0 and uint32(4) == 0xE11AB1A1 and
        $project and any of ($auto*) and any of ($act*)
}

rule rtf_equation_exploit
{
    meta:
        name = "Exploit.RTF-Equation"
        description = "an embedded equation object that loads itself (such as CVE-2017-11882)"
        kind = "malware"
        score = 10
    strings:
        $data = "\\objdata" nocase
        $load1 = "\\objupdate" nocase
        $load2 = "\\objautlink" nocase
        $name = "4571756174696f6e2e33" nocase
        $class = "02ce020000000000c000000000000046" nocase
    condition:
        uint32(0) == 0x74725C7B and
        $data and any of ($load*) and ($name or $class)
}

rule rtf_linked_object
{
    meta:
        name = "Carrier.RTF-Linked-Object"
        description = "an embedded link that is fetched when the document opens"
        kind = "suspicious"
        score = 6
    strings:
        $data = "\\objdata" nocase
        $link = "\\objautlink" nocase
        $load = "\\objupdate" nocase
        $moniker = "e0c9ea79f9bace118c8200aa004ba90b" nocase
    condition:
        uint32(0) == 0x74725C7B and $data and $link and $load and $moniker
}

rule onenote_with_program
{
    meta:
        name = "Carrier.OneNote-Program"
        description = "a notebook with a program or shortcut inside"
        kind = "malware"
        score = 10
    strings:
        $program = { E7 16 E3 BD 65 26 11 45 A4 C4 8D 4D 0B 7A 9E AC [20] 4D 5A }
        $shortcut = { E7 16 E3 BD 65 26 11 45 A4 C4 8D 4D 0B 7A 9E AC [20] 4C 00 00 00 01 14 02 00 }
    condition:
        uint32(0) == 0x7B5C52E4 and any of them
}
