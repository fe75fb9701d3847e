import DailyRepsCrypto
import Foundation
import HTTPTypes
import Testing

@testable import DailyRepsBackup

#if canImport(FoundationNetworking)
    import FoundationNetworking
#endif

/// What a device decides, in front of a server that gives prepared answers. The decisions are those of the clients in
/// Python and JavaScript.
struct DeviceTests {
    static let theirs = made("theirs", 2, base: String(repeating: "e", count: 64))
    static let onVersion1: @Sendable (inout State) -> Void = { $0.base = Base(sha256: f, sequence: 1, logSha256: "") }

    @Test func documentedExample() throws {
        let blob = Data(
            base64Encoded:
                "AQAAAAAAAAABAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAQIDBAUGBwgJCgtLN1ppwKfeXuthqaVPwuR2cXq+aFZIXCzS+JTOv4WN"
        )!
        #expect(try decrypt(blob, with: alex).log == log(#"{"workouts":[]}"#))
        let body = Data(#"{"data":"\#(blob.base64EncodedString())"}"#.utf8)
        let headers = proofs(
            method: "POST", path: "/api/backup", body: body, userId: alex.userId, storageKey: alex.storageKey,
            secret: AppSecret("an-example-secret-for-the-documentation"), created: Int(clock))
        #expect(headers.last?.value == "app=:xYxeoWTsho4jXQzg4x1JPRMm9VSlQkp5saTE8/YGETA=:")
    }

    // MARK: Lost answers

    @Test func lostAnswerThenTheSameBytesFreshlySigned() async throws {
        let scene = Scene(lost, stored(2, status: 200), before: Self.onVersion1)
        try await scene.device.sync()
        #expect(scene.sent.count == 2 && scene.sent[0].body == scene.sent[1].body)
        #expect(await scene.state.unsent == nil)
        #expect(await scene.state.isStored)
        #expect(scene.pauses.value == [2])
    }

    @Test func lostAgainThenTheSameBytesLater() async throws {
        let scene = Scene(lost, lost, lost, lost, stored(2), before: Self.onVersion1)
        #expect(await isLost { try await scene.device.sync() })
        #expect(scene.saved.value.last?.unsent != nil)
        // A restart: what was saved is loaded again.
        let later = Scene(stored(2), notModified) { $0 = scene.saved.value.last! }
        try await later.device.sync()
        #expect(later.sent[0].body == scene.sent[3].body)
    }

    static let notOfTheContract: [String: Reply] = [
        "a proxy's page": html(502),
        "a portal's page": html(200),
        "a page that is missing": html(404),
        "JSON of something else": json(200, "{}"),
        "a success without a media type": Reply { sent in
            .init(status: 201, body: Data(receipt(sent.blob).utf8))
        },
        "another success": json(202, receipt(Data([1]))),
        "the receipt of other bytes": json(201, receipt(Data([1]))),
        "the server failed": problem(500, "internal_error"),
        "the server is busy": problem(503, "unavailable", retryAfter: 2),
        "an unknown code": problem(599, "never_seen"),
        "a 304 that nobody asked for": json(304, ""),
        "a redirect": Reply(302, ["Location": "https://elsewhere.example"]),
        "a refusal without a problem": Reply(413),
    ]

    // client.lost-answer, client.receipt
    @Test(arguments: notOfTheContract.keys.sorted())
    func anAnswerThatIsNotOfTheContractIsLost(_ name: String) async throws {
        let scene = Scene(Self.notOfTheContract[name]!, stored(2), before: Self.onVersion1)
        try await scene.device.sync()
        #expect(scene.sent.count == 2 && scene.sent[0].body == scene.sent[1].body)
    }

    @Test func aTaskThatIsCancelledKeepsTheUpload() async throws {
        let scene = Scene(lost, before: Self.onVersion1)
        let task = Task { try await scene.device.sync() }
        task.cancel()
        #expect(await thrown { try await task.value } is CancellationError)
        #expect(await scene.state.unsent != nil)
    }

    @Test func aSuccessWithoutCacheControlIsNoLostAnswer() async throws {
        let scene = Scene(stored(2), before: Self.onVersion1)
        try await scene.device.sync()
        #expect(await scene.state.isStored)
    }

    @Test(arguments: [
        (507, "storage_full"), (500, "account_damaged"), (413, "payload_too_large"), (429, "rate_limited"),
    ])
    func aRefusalIsNoLostAnswer(_ status: Int, _ name: String) async throws {
        let scene = Scene(problem(status, name, retryAfter: 7), before: Self.onVersion1)
        let error = await thrown { try await scene.device.sync() } as? BackupError
        #expect(error?.code == name && error?.retryAfter == 7 && scene.sent.count == 1)
        #expect(await scene.state.unsent == nil)
    }

    @Test func aTimeoutOfTheRequestIsRepeated() async throws {
        let scene = Scene(problem(408, "request_timeout"), list())
        #expect(try await scene.device.versions().isEmpty)
        #expect(scene.sent.count == 2)
    }

    @Test func aLongWaitIsLeftToThePerson() async throws {
        let scene = Scene(problem(503, "unavailable", retryAfter: 600))
        let error = await thrown { _ = try await scene.device.versions() } as? BackupError
        #expect(error?.isLost == true && error?.retryAfter == 600 && scene.pauses.value.isEmpty)
    }

    // MARK: Base, conflict, sequence, verdict

    @Test func freshInstallation() async throws {
        let scene = Scene(problem(404, "no_backup"), stored(1))
        try await scene.device.sync()
        #expect(scene.sent[1].json["baseSha256"] == nil)
        #expect(try decrypt(scene.sent[1].blob, with: alex).sequence == 1)
    }

    // client.sequence
    @Test func conflictThenFetchMergeStore() async throws {
        let scene = Scene(conflict, backup(Self.theirs, 2), stored(3), before: Self.onVersion1)
        try await scene.device.sync()
        let upload = try decrypt(scene.sent[2].blob, with: alex)
        #expect(scene.sent[2].json["baseSha256"] == sha256(Self.theirs) && upload.baseSha256 == sha256(Self.theirs))
        #expect(upload.sequence == 3 && text(upload.log) == "mine+theirs")
        #expect(text(await scene.device.log) == "mine+theirs")
    }

    // client.idle
    @Test func nothingIsStoredIfNothingHasChanged() async throws {
        let tag = "\"2-\(sha256(Self.theirs))\""
        let scene = Scene(backup(Self.theirs, 2), notModified, log: "theirs")
        try await scene.device.sync()
        try await scene.device.sync()
        #expect(scene.sent.map(\.method) == ["GET", "GET"])
        #expect(scene.sent[0].headers[.ifNoneMatch] == nil && scene.sent[1].headers[.ifNoneMatch] == tag)
        #expect(scene.told.value.isEmpty)
    }

    @Test func notModifiedThoughNobodyAsked() async throws {
        let scene = Scene(notModified, backup(Self.theirs, 2), stored(3))
        try await scene.device.sync()
        #expect(text(await scene.device.log) == "mine+theirs")
    }

    @Test func notModifiedButAHigherVersionWasSeen() async throws {
        let scene = Scene(notModified, log: "theirs") { state in
            state.base = Base(sha256: f, sequence: 1, logSha256: sha256(log("theirs")), version: 1)
            state.highest = Seen(sequence: 2, sha256: sha256(Self.theirs))
        }
        try await scene.device.sync()
        #expect(scene.told.value == [.rollback])
    }

    // client.rollback
    @Test func anOlderVersionAsTheLatest() async throws {
        let scene = Scene(conflict, backup(Self.theirs, 9), stored(10)) { state in
            Self.onVersion1(&state)
            state.highest = Seen(sequence: 8, sha256: f)
        }
        try await scene.device.sync()
        #expect(scene.told.value == [.rollback])
        #expect(try decrypt(scene.sent[2].blob, with: alex).sequence == 9)
        #expect(text(await scene.device.log) == "mine+theirs")
    }

    // client.base
    @Test func anotherHistory() async throws {
        let fork = made("fork", 9, base: String(repeating: "a", count: 64))
        let scene = Scene(backup(fork, 9), stored(10)) { $0.highest = Seen(sequence: 8, sha256: f) }
        try await scene.device.sync()
        #expect(scene.told.value == [.unknownBase])
        #expect(await scene.state.highest.sequence == 10)
    }

    // client.rollback
    @Test func everythingIsGone() async throws {
        let scene = Scene(problem(404, "no_backup"), stored(1)) { $0.highest = Seen(sequence: 8, sha256: f) }
        try await scene.device.sync()
        #expect(scene.told.value == [.rollback])
        #expect(await scene.state.highest.sequence == 9)
    }

    @Test func aWorkoutThatIsLoggedDuringAnUploadStays() async throws {
        let box = Box<Device?>(nil)
        let scene = Scene(stored(2), stored(3), before: Self.onVersion1)
        box.value = scene.device
        try await scene.device.sync()
        try await scene.device.update { $0 + log("+new") }
        #expect(await !scene.state.isStored)
        try await scene.device.sync()
        #expect(text(try decrypt(scene.sent[1].blob, with: alex).log) == "mine+new")
    }

    @Test func callsWaitForEachOther() async throws {
        let scene = Scene(list(), list(), list())
        async let one = scene.device.versions()
        async let two = scene.device.versions()
        async let three = scene.device.versions()
        _ = try await (one, two, three)
        #expect(scene.sent.count == 3 && scene.fake.mostAtOnce == 1)
    }

    @Test func aLogThatIsTooLarge() async throws {
        let scene = Scene(log: String(repeating: "x", count: largestLog + 1), before: Self.onVersion1)
        #expect(await thrown { try await scene.device.sync() } as? BackupError == .logTooLarge)
    }

    // MARK: What cannot be read

    // client.format
    @Test func anUnknownFormatIsNeverOverwritten() async throws {
        var newer = Self.theirs
        newer[0] = 2
        let scene = Scene(backup(newer, 3), backup(newer, 3))
        #expect(await thrown { try await scene.device.sync() } is AppOutdatedError)
        #expect(await thrown { try await scene.device.replaceUnreadable() } is AppOutdatedError)
    }

    @Test func aLogThatTheAppCannotMergeCountsAsAnUnknownFormat() async throws {
        struct Unreadable: Error {}
        let scene = Scene(backup(Self.theirs, 3), merge: { _, _ in throw Unreadable() })
        #expect(await thrown { try await scene.device.sync() } is AppOutdatedError)
    }

    @Test func aDamagedVersionIsReplacedAsAChildOfIt() async throws {
        var broken = Self.theirs
        broken[60] ^= 1
        let scene = Scene(backup(broken, 3), backup(broken, 3), list(receipt(broken, 3)), stored(4))
        #expect(await thrown { try await scene.device.sync() } is DamagedError)
        try await scene.device.replaceUnreadable()
        let open = try decrypt(scene.sent[3].blob, with: alex)
        #expect(open.sequence == 2 && open.baseSha256 == sha256(broken))
    }

    // client.version
    @Test func aVersionThatDoesNotFitItsReceipt() async throws {
        let other = json(200, receipt(Data([1]), 2).dropLast() + #","data":"\#(Self.theirs.base64EncodedString())"}"#)
        let lenient = json(
            200, receipt(Data([0, 0]), 2).dropLast() + #","data":"AAB="}"#)  // unused bits that are not zero
        let scene = Scene(other, lenient, other, lenient)
        #expect(await thrown { try await scene.device.sync() } as? BackupError == .misfit)
        #expect(scene.sent.count == 4)
    }

    // MARK: Restoring

    // client.restore
    @Test func aRestoredLogReplacesTheLogWhenItIsAcknowledged() async throws {
        let old = made("old", 1)
        let scene = Scene(
            backup(Self.theirs, 2), list(receipt(Self.theirs, 2), receipt(old, 1)), backup(old, 1), lost, lost, lost,
            lost,
            stored(3, status: 200), notModified)
        #expect(await isLost { try await scene.device.restore(1) })
        #expect(text(await scene.device.log) == "mine+theirs")
        try await scene.device.sync()
        #expect(scene.sent[7].body == scene.sent[3].body)
        #expect(text(await scene.device.log) == "old")
        #expect(try decrypt(scene.sent[3].blob, with: alex).sequence == 3)
    }

    @Test func whatWasAddedWhileTheAnswerToARestoreWasLostStays() async throws {
        let old = made("old", 1)
        let scene = Scene(
            backup(Self.theirs, 2), list(receipt(Self.theirs, 2), receipt(old, 1)), backup(old, 1), lost, lost, lost,
            lost,
            stored(3, status: 200), stored(4))
        #expect(await isLost { try await scene.device.restore(1) })
        try await scene.device.update { _ in log("new") }
        try await scene.device.sync()
        #expect(text(await scene.device.log) == "new+old")
    }

    @Test func aRestoredLogReachesADeviceThatHasNotChangedAndNoOther() async throws {
        let restored = made("old", 3, base: sha256(Self.theirs))
        let quiet = Scene(backup(Self.theirs, 2), backup(restored, 3), log: "theirs")
        try await quiet.device.sync()
        try await quiet.device.sync()
        #expect(text(await quiet.device.log) == "old")
        let busy = Scene(backup(Self.theirs, 2), conflict, backup(restored, 3), stored(4), log: "theirs")
        try await busy.device.sync()
        try await busy.device.update { _ in log("mine") }
        try await busy.device.sync()
        #expect(text(await busy.device.log) == "mine+old")
    }

    @Test func junkOnTopAndTheVersionBelowItRestored() async throws {
        var junk = Self.theirs
        junk[60] ^= 1
        let below = made("below", 9)
        let listed = list(receipt(junk, 3), receipt(below, 2))
        let scene = Scene(backup(junk, 3), backup(junk, 3), listed, listed, backup(below, 2), stored(4)) {
            $0.highest = Seen(sequence: 7, sha256: f)
        }
        #expect(await thrown { try await scene.device.restore(2) } is DamagedError)
        try await scene.device.restore(2, confirmed: .damaged)
        #expect(try decrypt(scene.sent[5].blob, with: alex).sequence == 11)
    }

    @Test func aVersionOfBeforeAChangeOfThePassword() async throws {
        let old = made("old", 1, keys: newKeys)
        let scene = Scene(
            backup(Self.theirs, 2), list(receipt(Self.theirs, 2), receipt(old, 1)), backup(old, 1), stored(3),
            log: "theirs"
        ) { $0.oldKeys = [OldKeys(keys: newKeys, until: clock + 9)] }
        try await scene.device.restore(1)
        #expect(text(await scene.device.log) == "old")
    }

    @Test func aVersionOfAPasswordThatThisDeviceNeverHad() async throws {
        let old = made("old", 1, keys: Keys(userId: alex.userId, password: "an old one"))
        let scene = Scene(list(receipt(old, 1)), backup(old, 1), list(receipt(old, 1)), backup(old, 1))
        #expect(await thrown { _ = try await scene.device.openVersion(1) } is DamagedError)
        #expect(text(try await scene.device.openVersion(1, password: "an old one")) == "old")
        #expect(text(await scene.device.log) == "mine")
    }

    @Test func fetchingAlone() async throws {
        let scene = Scene(backup(Self.theirs, 2))
        try await scene.device.fetch()
        #expect(text(await scene.device.log) == "mine+theirs")
        #expect(await !scene.state.isStored)
    }

    @Test func aVersionThatIsNotListed() async throws {
        let scene = Scene(backup(Self.theirs, 2), list(receipt(Self.theirs, 2)))
        #expect(await thrown { try await scene.device.restore(1) } as? BackupError == .notListed)
    }

    // MARK: The clock

    // client.clock
    @Test func aWrongClockIsCorrectedOnce() async throws {
        let expired = problem(401, "signature_expired", #","serverTime":1795514400"#)
        let scene = Scene(expired, list())
        _ = try await scene.device.versions()
        #expect(scene.sent[1].headers[HTTPField.Name("Signature-Input")!]!.contains("created=1795514400;"))
        #expect(await scene.device.clockOffset == 3600)
        let twice = Scene(expired, expired)
        #expect(await code { _ = try await twice.device.versions() } == "signature_expired")
    }

    /// No answer makes an app crash.
    @Test(arguments: ["-9223372036854775808", "9223372036854775807", "1e400", "null", #""now""#])
    func aTimeThatIsNone(_ time: String) async throws {
        let answer = problem(401, "signature_expired", #","serverTime":\#(time)"#)
        let scene = Scene(answer, answer, answer, answer)
        let error = await thrown { _ = try await scene.device.versions() } as? BackupError
        #expect(error != nil)
    }

    @Test func aListWithADigestThatIsNone() async throws {
        let wrong = list(receipt(Self.theirs, 2).replacingOccurrences(of: sha256(Self.theirs), with: "zz"))
        let scene = Scene(problem(500, "backup_damaged"), wrong, wrong, wrong, wrong)
        #expect(await isLost { try await scene.device.replaceUnreadable() })
    }

    @Test func theWaitAfterAClockThatWasAhead() async throws {
        let expired = problem(401, "signature_expired", #","serverTime":\#(Int(clock) - 500)"#)
        let scene = Scene(expired, lost, no, list(), before: Self.onVersion1)
        #expect(await isLost { try await scene.device.changePassword(to: "a longer and better passphrase") })
        #expect(await scene.state.change?.keepUntil == clock + 1401)
        #expect(await scene.state.change?.ahead == 500)
        let deletion = Scene(expired, Reply(204))
        try await deletion.device.delete()
        #expect(await deletion.state.deletion?.registerAfter == clock + 1401)
        #expect(
            await thrown { try await deletion.device.register(username: "alex", password: "x") } as? BackupError
                == .beingDeleted)
    }

    // MARK: Changing the password

    /// The table of "A lost answer to a key change".
    // client.snapshot
    @Test func aLostChangeThatHappened() async throws {
        let scene = Scene(lost, list(receipt(Self.theirs, 2, keyVersion: 2)), before: Self.onVersion1)
        try await scene.device.changePassword(to: "a longer and better passphrase")
        #expect(await scene.state.change == nil)
        #expect(await scene.state.keys != alex)
        #expect(await scene.state.oldKeys == [OldKeys(keys: alex, until: clock + 60 * 86_400)])
        let keys = try #require(await scene.state.keys)
        #expect(scene.sent.map { isSigned($0, by: alex) } == [true, false])
        #expect(isSigned(scene.sent[1], by: keys))
    }

    func isSigned(_ sent: Fake.Sent, by keys: Keys) -> Bool {
        sent.headers[.authorization] == authorization(userId: keys.userId, storageKey: keys.storageKey)
    }

    @Test func aLostChangeThatDidNotHappen() async throws {
        let scene = Scene(lost, no, list(), no, list(), no, list(), before: Self.onVersion1)
        #expect(await isLost { try await scene.device.changePassword(to: "a longer and better passphrase") })
        #expect(await scene.state.keys == alex)
        // The change, the question with the new key, and the one with the old key.
        #expect(scene.sent.map { isSigned($0, by: alex) } == [true, false, true])
        scene.time.value += 900
        #expect(try await scene.device.settleChange() == .unsure)
        scene.time.value += 1
        #expect(try await scene.device.settleChange() == .old)
        #expect(await scene.state.change == nil)
    }

    @Test func bothKeysAreRefusedAndBothAreKept() async throws {
        let scene = Scene(lost, no, no, before: Self.onVersion1)
        #expect(
            await code { try await scene.device.changePassword(to: "a longer and better passphrase") }
                == "credentials_invalid")
        #expect(await scene.state.change != nil)
    }

    @Test func theAnswersDoNotTell() async throws {
        let scene = Scene(lost, lost, lost, lost, lost, before: Self.onVersion1)
        #expect(await isLost { try await scene.device.changePassword(to: "a longer and better passphrase") })
        #expect(await scene.state.hasUnsettledChange)
    }

    // client.forward
    @Test func anUnsettledChangeEncryptsNothingWithTheOldKeys() async throws {
        let listed = list(receipt(Self.theirs, 2))
        let scene = Scene(
            lost, no, listed, no, listed, no, listed, no, listed, stored(3, status: 200, keyVersion: 2),
            before: Self.onVersion1)
        #expect(await isLost { try await scene.device.changePassword(to: "a longer and better passphrase") })
        #expect(await thrown { try await scene.device.restore(1) } as? BackupError == .changeNotSettled)
        #expect(
            await thrown { try await scene.device.changePassword(to: "a third passphrase") } as? BackupError
                == .changeNotSettled)
        let file = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        #expect(
            await thrown { _ = try await scene.device.backgroundUpload(to: file) } as? BackupError == .changeNotSettled)
        try await scene.device.sync()
        let uploads = scene.sent.filter { $0.method != "GET" }
        let keys = try #require(await scene.state.keys)
        #expect(uploads.count == 2 && keys != alex)
        for upload in uploads {
            #expect(upload.path == "/api/user/storage-key")
            #expect(throws: Never.self) { try decrypt(upload.blob, with: keys) }
        }
        #expect(await scene.state.change == nil)
    }

    @Test func aRefusedChangeIsSettledLater() async throws {
        let scene = Scene(problem(429, "rate_limited", retryAfter: 60), before: Self.onVersion1)
        #expect(
            await code { try await scene.device.changePassword(to: "a longer and better passphrase") } == "rate_limited"
        )
        #expect(await scene.state.change != nil)
    }

    @Test func theSamePasswordAndAnOldOne() async throws {
        let scene = Scene {
            $0.oldKeys = [OldKeys(keys: Keys(userId: alex.userId, password: "an old one"), until: clock + 9)]
        }
        try await scene.device.changePassword(to: "correct horse battery staple")
        #expect(
            await thrown { try await scene.device.changePassword(to: "an old one") } as? BackupError == .oldPassword)
        #expect(scene.sent.isEmpty)
    }

    @Test func anUnknownFormatAndThereIsNoNewerApp() async throws {
        var newer = Self.theirs
        newer[0] = 2
        let scene = Scene(
            backup(newer, 3), backup(newer, 3), list(receipt(newer, 3)), stored(4, status: 200, keyVersion: 2))
        #expect(
            await thrown { try await scene.device.changePassword(to: "a third passphrase", confirmed: .damaged) }
                is AppOutdatedError)
        try await scene.device.changePassword(to: "a third passphrase", confirmed: .noNewerApp)
        #expect(scene.sent[3].json["baseSha256"] == sha256(newer))
    }

    // MARK: After a restored snapshot

    // client.snapshot
    @Test func theOldKeyWorksAgain() async throws {
        let restored = made("theirs", 2)
        let scene = Scene(
            list(receipt(restored, 2)), backup(restored, 2), stored(3, status: 200, keyVersion: 2), log: "theirs"
        ) { state in
            state.keys = newKeys
            state.highest = Seen(sequence: 5, sha256: f)
            state.oldKeys = [OldKeys(keys: alex, until: clock + 1)]
        }
        #expect(try await scene.device.afterRefusal() == .confirm)
        #expect(scene.sent.count == 1)
        #expect(try await scene.device.afterRefusal(nobodyChangedIt: true) == .changed)
        #expect(scene.told.value == [.rollback])
        #expect(try decrypt(scene.sent[2].blob, with: newKeys).sequence == 6)
        #expect(await scene.state.keys == newKeys)
    }

    @Test func noOldKeyWorks() async throws {
        let scene = Scene(no, no) { state in
            state.oldKeys = [thirdKeys, newKeys, alex].map { OldKeys(keys: $0, until: clock + 1) }
        }
        #expect(try await scene.device.afterRefusal() == .ask)
        #expect(scene.sent.count == 2)  // the two most recent
    }

    // MARK: Registering, signing in

    // client.sequence
    @Test func registering() async throws {
        let seen: (inout State) -> Void = { state in
            state.keys = nil
            state.highest = Seen(sequence: 8, sha256: f)
        }
        func register(_ answers: Reply..., change: (inout State) -> Void = seen) async throws -> Seen {
            let scene = Scene(answers[0], answers.last!, before: change)
            try await scene.device.register(username: "alex", password: "correct horse battery staple")
            #expect(await scene.state.keys == alex)
            #expect(await scene.state.registering == nil)
            return await scene.state.highest
        }
        let created = json(201, #"{"createdAt":"2026-11-24T09:00:00Z"}"#)
        let again = json(200, #"{"createdAt":"2026-11-24T09:00:00Z"}"#)
        #expect(try await register(created) == .nothing)
        #expect(try await register(again).sequence == 8)
        #expect(try await register(lost, again) == .nothing)
        #expect(
            try await register(
                again,
                change: {
                    seen(&$0)
                    $0.registering = alex
                }) == .nothing)
    }

    @Test func anotherUsersLog() async throws {
        let scene = Scene()
        #expect(
            await thrown { try await scene.device.signIn(username: "eve", password: "x") } as? BackupError
                == .anotherUser)
        #expect(
            await thrown { try await scene.device.register(username: "eve", password: "x") } as? BackupError
                == .anotherUser)
    }

    @Test func anotherDeviceChangedThePassword() async throws {
        let scene = Scene(list()) { state in
            state.keys = newKeys
            state.change = Change(old: newKeys, new: thirdKeys, keepUntil: clock + 9, ahead: 0)
        }
        try await scene.device.signIn(username: "alex", password: "correct horse battery staple")
        #expect(await scene.state.keys == alex)
        #expect(await scene.state.change == nil)
        #expect(await scene.state.oldKeys.map(\.keys) == [thirdKeys, newKeys])
    }

    @Test func signInByRecoveryCode() async throws {
        let scene = Scene(list()) { $0.keys = nil }
        try await scene.device.signIn(
            username: "Alex", recoveryCode: "05j6g48 yg3qsr4 0cpwzq8 85tk1ec g4rzbcx t6bphx7 m7wpcmr vb033x0")
        #expect(await scene.state.keys == alex)
        #expect(await scene.device.recoveryCode == "05J6G48-YG3QSR4-0CPWZQ8-85TK1EC-G4RZBCX-T6BPHX7-M7WPCMR-VB033X0")
    }

    /// Plays the sign-in in front of a server that accepts one key, with derivations that take no time.
    // client.derivations
    @Test(arguments: vectors("devices", "SignIn"))
    func signIn(_ vector: Vector) async throws {
        let known = vector["derivations"].list.enumerated().map { at, name in
            Derivation(
                name: name.text, iterations: at + 1, storageKeyInfo: Derivation.v1.storageKeyInfo,
                encryptionKeyInfo: Derivation.v1.encryptionKeyInfo)
        }
        let keys = try known.map { try Keys(username: "alex", password: "a", derivation: $0) }
        let inForce = vector["inForce"].optionalText
        let names = Box<[String]>([])
        let changed = Box(false)
        let answer = Reply { sent in
            let key = keys.first {
                sent.headers[.authorization] == authorization(userId: $0.userId, storageKey: $0.storageKey)
            }
            let name = key?.derivation ?? ""
            if sent.path == "/api/backup/versions" {
                names.change { $0.append(name) }
                return name == inForce ? list().answer(sent) : no.answer(sent)
            }
            if sent.method == "GET" { return problem(404, "no_backup").answer(sent) }
            changed.value = sent.json["storageKey"] == keys[0].storageKey && name == inForce
            return stored(1, status: 200).answer(sent)
        }
        let scene = Scene(answer, answer, answer, answer, answer, answer) { state in
            state.keys = nil
            state.succeeded = vector["succeeded"].optionalText
        }
        let refused = await code { try await scene.device.signIn(username: "alex", password: "a", derivations: known) }
        #expect(names.value == vector["tries"].list.map(\.text))
        #expect((refused == "credentials_invalid") == (vector["outcome"] == .null))
        #expect(changed.value == vector["change"].isTrue)
        #expect(await scene.state.succeeded == vector["succeededAfter"].optionalText)
    }

    // MARK: Deleting

    @Test func aRefusalCountsOnlyAsTheAnswerToARepeat() async throws {
        let repeated = Scene(lost, no)
        try await repeated.device.delete()
        let thrice = Scene(lost, lost, Reply(204))
        try await thrice.device.delete()
        let refused = Scene(no)
        #expect(await code { try await refused.device.delete() } == "credentials_invalid")
        #expect(await !refused.state.isBeingDeleted)
    }

    @Test func aLostDeletionIsRepeatedForTenMinutes() async throws {
        let scene = Scene(lost, lost, lost, lost, Reply(204))
        #expect(await isLost { try await scene.device.delete() })
        scene.time.value += 600
        #expect(await thrown { try await scene.device.delete() } as? BackupError == .beingDeleted)
        #expect(await thrown { try await scene.device.sync() } as? BackupError == .beingDeleted)
        try await scene.device.delete(confirmed: true)
        #expect(scene.sent.count == 5)
    }

    // MARK: Uploads in the background

    @Test func aBackgroundUpload() async throws {
        let file = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        defer { try? FileManager.default.removeItem(at: file) }
        let scene = Scene(before: Self.onVersion1)
        let request = try #require(try await scene.device.backgroundUpload(to: file))
        let body = try Data(contentsOf: file)
        #expect(request.url?.absoluteString == "https://backup.example/api/backup" && request.httpMethod == "POST")
        #expect(request.value(forHTTPHeaderField: "Content-Digest") == contentDigest(body))
        #expect(request.httpBody == nil)
        let sent = Fake.Sent(method: "POST", path: "", headers: [:], body: body)
        func answer(_ status: Int, _ type: String, _ body: String) async throws {
            let response = HTTPURLResponse(
                url: request.url!, statusCode: status, httpVersion: nil, headerFields: ["Content-Type": type])
            try await scene.device.finishBackgroundUpload(response, body: Data(body.utf8))
        }
        #expect(await isLost { try await scene.device.finishBackgroundUpload(nil, body: Data()) })
        #expect(await isLost { try await answer(502, "text/html", "<h1>") })
        #expect(await isLost { try await answer(200, "application/json", receipt(Data([1]))) })
        #expect(
            await code {
                try await answer(401, "application/problem+json", #"{"code":"signature_expired","serverTime":5}"#)
            }
                == "signature_expired")
        #expect(await scene.device.clockOffset == 0)
        // The same bytes again, freshly signed.
        scene.time.value += 301
        let again = try #require(try await scene.device.backgroundUpload(to: file))
        #expect(try Data(contentsOf: file) == body)
        #expect(again.value(forHTTPHeaderField: "Signature") != request.value(forHTTPHeaderField: "Signature"))
        try await answer(201, "application/json", receipt(sent.blob, 2))
        #expect(await scene.state.isStored)
        #expect(try await scene.device.backgroundUpload(to: file) == nil)
        try await answer(201, "application/json", receipt(sent.blob, 2))  // once more is harmless
    }

    @Test func aBackgroundUploadThatIsRefused() async throws {
        let file = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        defer { try? FileManager.default.removeItem(at: file) }
        let scene = Scene(before: Self.onVersion1)
        let request = try #require(try await scene.device.backgroundUpload(to: file))
        let response = HTTPURLResponse(
            url: request.url!, statusCode: 409, httpVersion: nil,
            headerFields: ["Content-Type": "application/problem+json"])
        #expect(
            await code {
                try await scene.device.finishBackgroundUpload(
                    response, body: Data(#"{"code":"version_conflict"}"#.utf8))
            } == "version_conflict")
        #expect(await scene.state.unsent == nil)
    }
}
