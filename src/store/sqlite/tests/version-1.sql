-- A store with a held message, one to be delivered and one to be scanned, as version 1 of the schema kept it.
BEGIN TRANSACTION;
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY,
    record TEXT NOT NULL,
    entry TEXT NOT NULL
) STRICT;
INSERT INTO "audit" VALUES(1,'01KAJ0000000000000000MA001','{"at":"2027-01-15T08:00:05Z","actor":"rita","act":"export","record":"01KAJ0000000000000000MA001","detail":""}');
CREATE TABLE body (seq INTEGER PRIMARY KEY, content BLOB NOT NULL) STRICT;
INSERT INTO "body" VALUES(1,X'001F3E5D7C9BBAD9F81C3B5A7998B7D6');
INSERT INTO "body" VALUES(2,X'001F3E5D7C9BBAD9F81C3B5A7998B7D6');
INSERT INTO "body" VALUES(3,X'001F3E5D7C9BBAD9F81C3B5A7998B7D6');
CREATE TABLE message (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    lane INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    lease_until INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    size INTEGER NOT NULL,
    file INTEGER NOT NULL,
    damaged TEXT,
    sender TEXT NOT NULL,
    recipients TEXT NOT NULL,
    subject TEXT NOT NULL,
    rule TEXT NOT NULL,
    reason TEXT NOT NULL,
    engines TEXT NOT NULL,
    findings TEXT NOT NULL,
    record TEXT NOT NULL
) STRICT;
INSERT INTO "message" VALUES(1,'01KAJ0000000000000000MA001',2,1800000000000000,0,1800000000000000,1800001000000000,16,0,NULL,'sender@one.example','
rita@two.example
','quarterly report','policy.malware','clamd found eicar-test','
clamd
rspamd
','
eicar-test
','{"id":"01KAJ0000000000000000MA001","message":"01KAJ0000000000000000MA001","lane":"held","envelope":{"reverse_path":"Sender@One.example","recipients":[{"mailbox":"Rita@two.example","notify":null,"orcpt":null}],"body":"seven-bit","smtputf8":false,"ret":null,"envid":null,"origin":{"client":"127.0.0.1","client_name":null,"helo":"","protocol":"local","tls":null,"user":null,"listener":"smtp"}},"trace":"Received: from a by b; now\r\n","size":0,"sha256":"","subject":"Quarterly Report","received_at":"2027-01-15T08:00:00Z","due_at":"2027-01-15T08:00:00Z","expires_at":"2027-01-15T08:16:40Z","attempts":1,"spent":1500,"decision":{"verdict":"malicious","disposition":"quarantine","rule":"policy.malware","reason":"clamd found Eicar-Test","score":10.0,"tag":false,"missing":[["rspamd","timeout"]],"config":"cfg-1"},"reports":[{"engine":"clamd","class":"av","answer":{"answered":[{"kind":"malware","name":"Eicar-Test","score":10.0,"detail":null}]},"replica":null,"signatures":"27000","attempts":1,"elapsed":12},{"engine":"rspamd","class":"av","answer":{"none":{"reason":"timeout","detail":"5 s","findings":[]}},"replica":null,"signatures":"27000","attempts":1,"elapsed":12},{"engine":"rules","class":"av","answer":{"answered":[]},"replica":null,"signatures":"27000","attempts":1,"elapsed":12}],"status":"","released":false}');
INSERT INTO "message" VALUES(2,'01KAJ0000000000000000WA001',1,1800000000000000,0,1800000000000000,1800001000000000,16,0,NULL,'sender@one.example','
rita@two.example
','quarterly report','policy.malware','clamd found eicar-test','
clamd
rspamd
','
eicar-test
','{"id":"01KAJ0000000000000000WA001","message":"01KAJ0000000000000000WA001","lane":"delivery","envelope":{"reverse_path":"Sender@One.example","recipients":[{"mailbox":"Rita@two.example","notify":null,"orcpt":null}],"body":"seven-bit","smtputf8":false,"ret":null,"envid":null,"origin":{"client":"127.0.0.1","client_name":null,"helo":"","protocol":"local","tls":null,"user":null,"listener":"smtp"}},"trace":"Received: from a by b; now\r\n","size":0,"sha256":"","subject":"Quarterly Report","received_at":"2027-01-15T08:00:00Z","due_at":"2027-01-15T08:00:00Z","expires_at":"2027-01-15T08:16:40Z","attempts":1,"spent":1500,"decision":{"verdict":"malicious","disposition":"quarantine","rule":"policy.malware","reason":"clamd found Eicar-Test","score":10.0,"tag":false,"missing":[["rspamd","timeout"]],"config":"cfg-1"},"reports":[{"engine":"clamd","class":"av","answer":{"answered":[{"kind":"malware","name":"Eicar-Test","score":10.0,"detail":null}]},"replica":null,"signatures":"27000","attempts":1,"elapsed":12},{"engine":"rspamd","class":"av","answer":{"none":{"reason":"timeout","detail":"5 s","findings":[]}},"replica":null,"signatures":"27000","attempts":1,"elapsed":12},{"engine":"rules","class":"av","answer":{"answered":[]},"replica":null,"signatures":"27000","attempts":1,"elapsed":12}],"status":"","released":false}');
INSERT INTO "message" VALUES(3,'01KAJ0000000000000000SC001',0,1800000000000000,0,1800000000000000,1800001000000000,16,0,NULL,'sender@one.example','
rita@two.example
','quarterly report','policy.malware','clamd found eicar-test','
clamd
rspamd
','
eicar-test
','{"id":"01KAJ0000000000000000SC001","message":"01KAJ0000000000000000SC001","lane":"scan","envelope":{"reverse_path":"Sender@One.example","recipients":[{"mailbox":"Rita@two.example","notify":null,"orcpt":null}],"body":"seven-bit","smtputf8":false,"ret":null,"envid":null,"origin":{"client":"127.0.0.1","client_name":null,"helo":"","protocol":"local","tls":null,"user":null,"listener":"smtp"}},"trace":"Received: from a by b; now\r\n","size":0,"sha256":"","subject":"Quarterly Report","received_at":"2027-01-15T08:00:00Z","due_at":"2027-01-15T08:00:00Z","expires_at":"2027-01-15T08:16:40Z","attempts":1,"spent":1500,"decision":{"verdict":"malicious","disposition":"quarantine","rule":"policy.malware","reason":"clamd found Eicar-Test","score":10.0,"tag":false,"missing":[["rspamd","timeout"]],"config":"cfg-1"},"reports":[{"engine":"clamd","class":"av","answer":{"answered":[{"kind":"malware","name":"Eicar-Test","score":10.0,"detail":null}]},"replica":null,"signatures":"27000","attempts":1,"elapsed":12},{"engine":"rspamd","class":"av","answer":{"none":{"reason":"timeout","detail":"5 s","findings":[]}},"replica":null,"signatures":"27000","attempts":1,"elapsed":12},{"engine":"rules","class":"av","answer":{"answered":[]},"replica":null,"signatures":"27000","attempts":1,"elapsed":12}],"status":"","released":false}');
CREATE TABLE probe (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), writes INTEGER NOT NULL) STRICT;
INSERT INTO "probe" VALUES(1,0);
CREATE INDEX work ON message (lane, due_at, lease_until, size, received_at) WHERE damaged IS NULL;
CREATE INDEX held ON message (received_at, expires_at, size, sender, recipients, subject, rule, reason, engines, findings)
    WHERE lane = 2 AND damaged IS NULL;
CREATE INDEX expiry ON message (expires_at) WHERE lane = 2 AND damaged IS NULL;
CREATE INDEX audited ON audit (record);
COMMIT;
PRAGMA application_id = 1397774169;
PRAGMA user_version = 1;
