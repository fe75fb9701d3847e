import DailyRepsCrypto
import Foundation

#if canImport(FoundationNetworking)
    import FoundationNetworking
#endif

/// No signature can act for longer, in seconds.
private let signatureActs = 901.0
/// No snapshot of a server lives longer, in seconds.
private let snapshotLives = 60 * 86_400.0
/// A client waits as long by itself, in seconds. After that, the person may try again.
private let longestPause = 60.0

/// One device of one user: it keeps a log and its backup in step.
///
///     let device = Device(server: server, state: state, merge: merge, save: file.save)
///     try await device.signIn(username: "Anna", password: password)
///     try await device.sync()
///
/// Every function may throw ``BackupError``. After ``BackupError/lost(_:)``, call it again later. Calls wait for each
/// other, except ``update(_:)``, which may come at any time.
public actor Device {
    /// What this device has saved.
    public private(set) var state: State
    /// How many seconds the server's clock is ahead, as far as this device knows.
    private(set) var clockOffset = 0

    private let server: Server
    private let merge: @Sendable (_ mine: Data, _ theirs: Data) throws -> Data
    private let onSave: @Sendable (State) throws -> Void
    private let tell: @Sendable (Verdict) -> Void
    private let now: @Sendable () -> Double
    private let pause: @Sendable (_ seconds: Double) async throws -> Void
    private let attempts = 4
    /// Old keys that work again, until the person was asked.
    private var undone: Keys?
    private var isBusy = false
    private var waiting: [CheckedContinuation<Void, Never>] = []

    /// - Parameters:
    ///   - state: What was saved, or a new one.
    ///   - merge: Returns a log with what either log has. It must keep what it does not know. If it throws, the log of
    ///     the backup counts as one of a newer version of the app, and is never overwritten.
    ///   - save: Stores the state on the device: all of it or nothing. It is called before each request that needs it.
    ///   - tell: Gets ``Verdict/rollback`` or ``Verdict/unknownBase``: tell the person that the server gave out an
    ///     older state, or was restored from a snapshot, or that another device deleted the account and made it again.
    ///   - now: The device's clock, in Unix seconds.
    ///   - pause: Waits between two attempts.
    public init(
        server: Server, state: State,
        merge: @escaping @Sendable (_ mine: Data, _ theirs: Data) throws -> Data,
        save: @escaping @Sendable (State) throws -> Void,
        tell: @escaping @Sendable (Verdict) -> Void = { _ in },
        now: @escaping @Sendable () -> Double = { Date().timeIntervalSince1970 },
        pause: @escaping @Sendable (_ seconds: Double) async throws -> Void = {
            try await Task.sleep(nanoseconds: UInt64($0 * 1e9))
        }
    ) {
        self.server = server
        self.state = state
        self.merge = merge
        onSave = save
        self.tell = tell
        self.now = now
        self.pause = pause
    }

    /// The log as it is on this device.
    public var log: Data { state.log }

    /// The master key in a form that a person can write down. Show it after a registration, and after each change of
    /// the password, which makes the old one void.
    public var recoveryCode: String? { state.keys?.recoveryCode }

    /// Changes the log on this device, for example by a workout. `sync()` stores it. An upload that is under way does
    /// not get in the way.
    public func update(_ edit: @Sendable (Data) throws -> Data) throws {
        let log = try edit(state.log)
        try save { $0.log = log }
    }

    // MARK: Signing in

    /// Finds the keys that are in force, by the newest derivation first, and keeps them. Fetches nothing: call
    /// ``sync()``.
    ///
    /// - Throws: ``BackupError/refused(_:)`` with `credentials_invalid`, whose sentence names both causes.
    ///   ``BackupError/anotherUser`` if the log belongs to another username.
    public func signIn(username: String, password: String) async throws {
        try await signIn(username: username, password: password, derivations: Derivation.all)
    }

    func signIn(username: String, password: String, derivations: [Derivation]) async throws {
        await begin()
        defer { end() }
        let tried = try derivationsToTry(succeeded: state.succeeded, of: derivations)
        for derivation in tried {
            let keys = try await derive { try Keys(username: username, password: password, derivation: derivation) }
            do { try await open(keys) } catch let error as BackupError {
                if error.code == "credentials_invalid", derivation != tried.last { continue }
                throw error
            }
            if derivation != derivations[0] {
                try await change(
                    to: derive { try Keys(username: username, password: password, derivation: derivations[0]) })
            }
            return
        }
    }

    /// Signs in by a recovery code. Then ask for a new password, and call ``changePassword(to:confirmed:)``.
    ///
    /// - Throws: `MistypedCodeError`, and the same as ``signIn(username:password:)``.
    public func signIn(username: String, recoveryCode: String) async throws {
        await begin()
        defer { end() }
        let keys = try Keys(username: username, recoveryCode: recoveryCode)
        // A code of an older derivation than the newest that has succeeded is void.
        guard try derivationsToTry(succeeded: state.succeeded).contains(where: { $0.name == keys.derivation }) else {
            throw MistypedCodeError()
        }
        try await open(keys)
    }

    /// Goes on with these keys, if they are in force.
    private func open(_ keys: Keys) async throws {
        if let before = state.keys, before.userId != keys.userId { throw BackupError.anotherUser }
        _ = try await listed(by: keys)
        try save { state in
            if let before = state.keys, before != keys {  // another device changed the password
                let change = state.change
                let stillOpen = change?.old == keys ? change : nil
                let attempted = stillOpen != nil || change?.new == keys ? [] : [change?.new].compactMap { $0 }
                state.unsent = nil
                state.change = stillOpen
                state.oldKeys = oldKeys(of: state, with: attempted + [before], inForce: keys)
            }
            state.keys = keys
            state.succeeded = keys.derivation
            state.registering = nil
        }
    }

    /// Creates the account, and keeps its keys. Check the password before, by `problem(ofPassword:common:)`.
    /// Afterwards, show the ``recoveryCode`` and call ``sync()``. A repeat is harmless.
    ///
    /// - Throws: ``BackupError/refused(_:)`` with `username_taken`, for example. ``BackupError/beingDeleted`` as long
    ///   as a delayed deletion could delete the new account.
    public func register(username: String, password: String) async throws {
        await begin()
        defer { end() }
        let keys = try await derive { try Keys(username: username, password: password) }
        if let before = state.keys, before.userId != keys.userId { throw BackupError.anotherUser }
        if let deletion = state.deletion, now() < deletion.registerAfter { throw BackupError.beingDeleted }
        var lost = state.registering == keys
        try save { $0.registering = keys }
        let isNew: Bool
        do {
            isNew = try await repeated(keys, lost: &lost) { try await $0.register() }
        } catch let error as BackupError {
            if !error.isLost { try save { $0.registering = nil } }
            throw error
        }
        try save { state in
            state.keys = keys
            state.succeeded = keys.derivation
            state.registering = nil
            state.deletion = nil
            guard isNew || lost else { return }
            // In a new account, this device has seen nothing.
            state.base = nil
            state.highest = .nothing
            state.highestLog = nil
            state.unsent = nil
        }
    }

    /// What to do about a `credentials_invalid` that nobody can explain.
    public enum AfterRefusal: Sendable {
        /// An old password works again: the server was restored from a snapshot, or somebody changed the password back.
        /// Ask the person. If nobody did, call ``Device/afterRefusal(nobodyChangedIt:)`` with true.
        case confirm
        /// The password was changed again, to the new one.
        case changed
        /// Ask the person for the password. If nobody changed it and nobody deleted the account, register.
        case ask
    }

    /// Finds out what to do about `credentials_invalid`, if nobody changed the password or deleted the account.
    public func afterRefusal(nobodyChangedIt: Bool = false) async throws -> AfterRefusal {
        await begin()
        defer { end() }
        if undone == nil { undone = try await oldKeysInForce() }
        guard let undone else { return .ask }
        guard nobodyChangedIt else { return .confirm }
        try await fetch(undone)
        try await change(to: keys(), from: undone)
        self.undone = nil
        return .changed
    }

    private func oldKeysInForce() async throws -> Keys? {
        // At most two: each refusal counts as a failed credential.
        for old in state.oldKeys.suffix(2).reversed() where old.until >= now() {
            do {
                _ = try await list(old.keys)
                return old.keys
            } catch let error as BackupError where error.code == "credentials_invalid" {}
        }
        return nil
    }

    // MARK: Keeping the log and its backup in step

    /// Fetches, merges, and stores the log if it differs from the fetched one. Afterwards, ``log`` has what all devices
    /// have.
    ///
    /// If the log has changed since, it is stored at once: a conflict tells whether another device has stored. An
    /// upload whose answer was lost is repeated first, with the same bytes. If a change of the password is not settled,
    /// the change is sent again instead: it stores the log, too.
    ///
    /// - Throws: `AppOutdatedError` or `DamagedError` if the latest version cannot be read: see
    ///   ``replaceUnreadable()``.
    public func sync() async throws {
        await begin()
        defer { end() }
        try mustNotBeDeleted()
        if let change = state.change, try await !isInForce(change) {
            return try await self.change(to: change.new, from: change.old)
        }
        if let unsent = state.unsent {
            do { try await send(unsent) } catch let error as BackupError where error.code == "version_conflict" {
                try await fetch(nil)
            }
        }
        if state.isStored { try await fetch(nil) }
        try await onLatest {
            if await !self.state.isStored { try await self.send(self.upload(by: self.keys())) }
        }
    }

    /// Fetches the latest version and merges it, without storing anything.
    public func fetch() async throws {
        await begin()
        defer { end() }
        try mustNotBeDeleted()
        try await fetch(nil)
    }

    /// Fetches the latest version, compares it with the highest seen, and merges it. If the log has not changed since
    /// the highest seen, and the latest version was made from that one, adopts it: so a restored version reaches this
    /// device.
    private func fetch(_ keys: Keys?) async throws {
        let tag = keys == nil && state.base?.sequence != nil ? state.base?.entityTag : nil
        let keys = try keys ?? self.keys()
        let fetched: Fetched?
        do { fetched = try await self.fetched(keys, ifNoneMatch: tag) { try await $0.fetch() } } catch let error
            as BackupError
            where error.code == "no_backup"
        {
            compare(.nothing, nil)
            return try save { $0.base = nil }
        }
        guard let fetched else {  // the latest version is the base. If a higher one was seen, it is an older one.
            if state.highest.sequence > 0, state.highest.sha256 != state.base?.sha256 { tell(.rollback) }
            return
        }
        let latest = try decrypt(fetched.blob, with: keys)
        let seen = Seen(sequence: latest.sequence, sha256: fetched.sha256)
        let logSha256 = sha256(latest.log)
        let found = compare(seen, latest.baseSha256)
        let adopts = found == .next && state.highestLog == sha256(state.log)
        let log = adopts ? latest.log : try merged(latest.log)
        try save { state in
            state.log = log
            state.base = Base(
                sha256: fetched.sha256, sequence: latest.sequence, logSha256: logSha256, version: fetched.version)
            state.highest = state.highest.higher(seen)
            if state.highest.sha256 == seen.sha256 { state.highestLog = logSha256 }
        }
    }

    private func merged(_ theirs: Data) throws -> Data {
        // A log that the app cannot read is treated like a blob of an unknown format.
        do { return try merge(state.log, theirs) } catch { throw AppOutdatedError() }
    }

    @discardableResult
    private func compare(_ latest: Seen, _ baseSha256: String?) -> Verdict {
        let found = verdict(highest: state.highest, latest: latest, baseSha256: baseSha256)
        if found.isAlarm { tell(found) }
        return found
    }

    /// Returns the receipts of the kept versions, newest first.
    public func versions() async throws -> [Version] {
        await begin()
        defer { end() }
        try mustNotBeDeleted()
        return try await listed(by: keys())
    }

    /// What the person agreed to, if the latest version cannot be read.
    public enum Confirmed: Sendable {
        /// Nothing: it stays.
        case nothing
        /// It may be replaced if it is damaged, or was made with other keys.
        case damaged
        /// It may be replaced even if it has an unknown format, because the publisher offers no newer version of the
        /// app.
        case noNewerApp
    }

    /// Returns the log of an older version, for the person to look at. Nothing changes. Show the date that the log itself
    /// has: the list is the server's word.
    ///
    /// - Parameters:
    ///   - version: One of ``versions()``.
    ///   - password: That of its ``Version/keyVersion``, if the password has changed since. The keys that this device has
    ///     kept are tried first.
    /// - Throws: ``BackupError/notListed``. `DamagedError` if it was made with another password: ask for it.
    public func openVersion(_ version: Int64, password: String? = nil) async throws -> Data {
        await begin()
        defer { end() }
        try mustNotBeDeleted()
        return try await opened(version, password).log
    }

    private func opened(_ version: Int64, _ password: String?) async throws -> Decrypted {
        let keys = try self.keys()
        guard let listed = try await listed(by: keys).first(where: { $0.version == version }) else {
            throw BackupError.notListed
        }
        let fetched = try await fetched(keys, version: version, sha256: listed.sha256) {
            try await $0.fetch(version: version)
        }
        guard let fetched else { throw BackupError.lost(nil) }
        // It is old on purpose: no verdict.
        for keys in [keys] + state.oldKeys.reversed().map(\.keys) {
            do { return try decrypt(fetched.blob, with: keys) } catch is DamagedError {}
        }
        guard let password else { throw DamagedError() }
        for derivation in Derivation.all {
            let keys = await derive { Keys(userId: keys.userId, password: password, derivation: derivation) }
            do { return try decrypt(fetched.blob, with: keys) } catch is DamagedError {}
        }
        throw DamagedError()
    }

    /// Stores an older version again, as the latest. When this is acknowledged, its log replaces the log. The version
    /// that was the latest stays in the list.
    ///
    /// - Parameters:
    ///   - version: One of ``versions()``.
    ///   - password: As in ``openVersion(_:password:)``.
    ///   - confirmed: What the person agreed to, if the latest version cannot be read.
    /// - Throws: The same as ``openVersion(_:password:)``, and ``BackupError/changeNotSettled``.
    public func restore(_ version: Int64, password: String? = nil, confirmed: Confirmed = .nothing) async throws {
        await begin()
        defer { end() }
        try await mustBeSettled()
        try await fetchToReplace(keys(), confirmed)
        let old = try await opened(version, password)
        try await onLatest(confirmed: confirmed) {
            try await self.send(self.upload(by: self.keys(), restored: old))
        }
    }

    /// Replaces a latest version that cannot be fetched or decrypted by the log. Ask the person first.
    ///
    /// - Throws: `AppOutdatedError` for a version of an unknown format, which is not replaced. If the publisher offers
    ///   no newer version of the app, and the person confirms it, call ``restore(_:password:confirmed:)`` or
    ///   ``changePassword(to:confirmed:)`` with ``Confirmed/noNewerApp``.
    public func replaceUnreadable() async throws {
        await begin()
        defer { end() }
        try await mustBeSettled()
        try await fetchToReplace(keys(), .damaged)
        try await send(upload(by: keys()))
    }

    /// Fetches and merges the latest version. If it cannot be read, and the person agreed, names it as the base.
    private func fetchToReplace(_ keys: Keys, _ confirmed: Confirmed) async throws {
        do { return try await fetch(keys) } catch is AppOutdatedError where confirmed == .noNewerApp {
        } catch is DamagedError where confirmed != .nothing {
        } catch let error as BackupError
            where confirmed != .nothing && (error == .misfit || error.code == "backup_damaged")
        {}
        guard let latest = try await list(keys).first else { throw BackupError.lost(nil) }
        try save { $0.base = Base(sha256: latest.sha256) }
    }

    // MARK: Changing the password

    /// Changes the password. Check it before, by `problem(ofPassword:common:)`. Show the new ``recoveryCode``
    /// afterwards.
    ///
    /// If the answer is lost, this throws, both keys are kept, and nothing is encrypted with the old ones any more. The
    /// next
    /// ``sync()`` goes on with the change.
    ///
    /// - Throws: ``BackupError/oldPassword``, and ``BackupError/changeNotSettled`` if a change to another password is
    ///   under way.
    public func changePassword(to password: String, confirmed: Confirmed = .nothing) async throws {
        await begin()
        defer { end() }
        let keys = try self.keys()
        try await change(to: derive { Keys(userId: keys.userId, password: password) }, confirmed: confirmed)
    }

    /// Which keys are in force after a change whose answer was lost.
    public enum Settled: Sendable {
        /// The new ones. The device goes on with them.
        case new
        /// The old ones, for good: the change has not happened. The person may give it up.
        case old
        /// The old ones, but the change may still arrive. Ask again later, at most once a minute.
        case unsure
    }

    /// Finds out whether a change happened whose answer was lost.
    public func settleChange() async throws -> Settled {
        await begin()
        defer { end() }
        return try await settle()
    }

    private func settle() async throws -> Settled {
        guard let change = state.change else { return .old }
        let asked = now()
        if try await isInForce(change) { return .new }
        // The clock may have been corrected meanwhile, which makes the time longer.
        if asked < state.change?.keepUntil ?? change.keepUntil { return .unsure }
        try save { $0.change = nil }
        return .old
    }

    /// The table of "A lost answer to a key change": asks with the new keys, then with the old ones.
    ///
    /// | new key | old key | |
    /// |---|---|---|
    /// | 200 | not asked | true: the device goes on with the new keys |
    /// | `credentials_invalid` | 200 | false: the change has not happened so far |
    /// | `credentials_invalid` | `credentials_invalid` | throws it: keep both keys, and ask the person |
    /// | anything else | | throws it: the answers do not tell |
    private func isInForce(_ change: Change) async throws -> Bool {
        do { _ = try await list(change.new) } catch let error as BackupError where error.code == "credentials_invalid" {
            _ = try await list(change.old)
            return false
        }
        try adopt(change, nil)
        return true
    }

    private func mustNotBeDeleted() throws { if state.deletion != nil { throw BackupError.beingDeleted } }

    private func mustBeSettled() async throws {
        try mustNotBeDeleted()
        if let change = state.change, try await !isInForce(change) { throw BackupError.changeNotSettled }
    }

    private func change(to new: Keys, from old: Keys? = nil, confirmed: Confirmed = .nothing) async throws {
        try mustNotBeDeleted()
        if let change = state.change, change.new != new, try await !isInForce(change) {
            throw BackupError.changeNotSettled
        }
        let old = try old ?? keys()
        if new == old { return }
        if state.oldKeys.contains(where: { $0.keys == new }) { throw BackupError.oldPassword }
        try await onLatest(old, confirmed: confirmed) { try await self.sendChange(from: old, to: new) }
    }

    private func sendChange(from old: Keys, to new: Keys) async throws {
        let upload = try self.upload(by: new)
        let ahead = max(state.change?.ahead ?? 0, Double(-clockOffset))
        let change = Change(old: old, new: new, keepUntil: now() + signatureActs + ahead, ahead: ahead)
        try save { state in
            state.unsent = nil  // an upload with the old keys is sent no more
            state.change = change
        }
        let body = Components.Schemas.StorageKeyChange(
            storageKey: new.storageKey, data: upload.body.data, baseSha256: upload.baseSha256)
        do {
            let receipt = try await once(old) { try await $0.changeKey(body) }
            guard receipt.isReceipt(of: upload.blob) else { throw BackupError.lost(nil) }
            try adopt(change, upload, receipt.version)
        } catch let error as BackupError {
            guard error.isLost || error.code == "credentials_invalid" else { throw error }
            if try await settle() != .new { throw error }
        }
    }

    private func adopt(_ change: Change, _ upload: Upload?, _ version: Int64? = nil) throws {
        try save { state in
            state.oldKeys = oldKeys(of: state, with: [change.old], inForce: change.new)
            state.keys = change.new
            state.base = nil
            state.unsent = nil
            state.change = nil
            state.succeeded = change.new.derivation
            if let upload { acknowledge(upload, version, in: &state) }
        }
    }

    private func oldKeys(of state: State, with old: [Keys], inForce: Keys) -> [OldKeys] {
        let now = now()
        return state.oldKeys.filter { $0.until > now && !old.contains($0.keys) && $0.keys != inForce }
            + old.map { OldKeys(keys: $0, until: now + snapshotLives) }
    }

    // MARK: Deleting the account

    /// Deletes the account and every version. After a lost answer, call it again, also after a restart. The log on the
    /// device stays.
    ///
    /// - Parameter confirmed: 10 minutes after the first attempt, ask the person before you repeat it: somebody may
    ///   have registered the account again.
    /// - Throws: ``BackupError/beingDeleted`` if that was not confirmed.
    public func delete(confirmed: Bool = false) async throws {
        await begin()
        defer { end() }
        let keys = try self.keys()
        var isRepeat = state.deletion != nil
        for attempt in 1...attempts {
            let at = now()
            let first = state.deletion?.first ?? at
            if !confirmed && at >= first + 600 { throw BackupError.beingDeleted }
            let ahead = max(state.deletion?.ahead ?? 0, Double(-clockOffset))
            try save { $0.deletion = Deletion(first: first, registerAfter: at + signatureActs + ahead, ahead: ahead) }
            do { return try await once(keys) { try await $0.delete() } } catch let error as BackupError {
                if isRepeat && error.code == "credentials_invalid" { return }
                if !error.mayBeRepeated && !isRepeat { try save { $0.deletion = nil } }  // it was refused
                if !error.mayBeRepeated || attempt == attempts { throw error }
                isRepeat = isRepeat || error.isLost
                try await wait(attempt, error)
            }
        }
    }

    // MARK: Uploads in the background

    /// Prepares an upload that the system makes while the app is suspended: writes the body to a file, and returns the
    /// signed request for `URLSession.uploadTask(with:fromFile:)` of a background session. Returns nil if there is
    /// nothing to store.
    ///
    /// Start the task at once: the signature expires 300 seconds after it was made. When the task has ended, call
    /// ``finishBackgroundUpload(_:body:)``.
    ///
    /// If nothing was ever fetched or stored, this fetches first.
    ///
    /// - Throws: ``BackupError/changeNotSettled`` if a change of the password is not settled: call ``sync()`` then.
    public func backgroundUpload(to file: URL) async throws -> URLRequest? {
        await begin()
        defer { end() }
        try mustNotBeDeleted()
        guard state.change == nil else { throw BackupError.changeNotSettled }
        let keys = try self.keys()
        if state.unsent == nil {
            if state.base == nil { try await fetch(nil) }
            if state.isStored { return nil }
            let upload = try self.upload(by: keys)
            try save { $0.unsent = upload }
        }
        guard let unsent = state.unsent else { return nil }
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        let body = try encoder.encode(unsent.body)
        try body.write(to: file, options: .atomic)
        var request = URLRequest(url: server.url.appendingPathComponent("api/backup"))
        request.httpMethod = "POST"
        request.setValue("application/json", forHTTPHeaderField: "Content-Type")
        for (name, value) in proofs(keys).headers(method: "POST", path: "/api/backup", body: body) {
            request.setValue(value, forHTTPHeaderField: name)
        }
        return request
    }

    /// Takes the answer to a background upload. After ``BackupError/lost(_:)``, or if the signature had expired, the
    /// upload stays, and the next ``sync()`` or ``backgroundUpload(to:)`` repeats the same bytes.
    ///
    /// - Parameters:
    ///   - response: That of the task, or nil if it failed.
    ///   - body: What `urlSession(_:dataTask:didReceive:)` received.
    public func finishBackgroundUpload(_ response: URLResponse?, body: Data) async throws {
        await begin()
        defer { end() }
        guard let unsent = state.unsent else { return }  // `sync()` was faster
        guard let response = response as? HTTPURLResponse else { throw BackupError.lost(nil) }
        guard [200, 201].contains(response.statusCode) else {
            let error = error(status: response.statusCode, header: response.value(forHTTPHeaderField:), body: body)
            // The system repeats a task by itself. So an expired signature may belong to a repeat of an upload that was
            // done.
            if !error.isLost && error.code != "signature_expired" { try save { $0.unsent = nil } }
            throw error
        }
        let decoder = JSONDecoder()
        decoder.dateDecodingStrategy = .iso8601
        guard let receipt = try? Version(decoder.decode(Components.Schemas.Receipt.self, from: body)),
            receipt.isReceipt(of: unsent.blob)
        else { throw BackupError.lost(nil) }
        try acknowledged(unsent, receipt.version)
    }

    // MARK: One upload, one request

    /// Stores on the base. After a conflict, fetches, merges and stores again.
    private func onLatest(
        _ keys: Keys? = nil, confirmed: Confirmed = .nothing, _ store: @Sendable () async throws -> Void
    ) async throws {
        let keys = try keys ?? self.keys()
        if state.base == nil { try await fetchToReplace(keys, confirmed) }
        for attempt in 1...attempts {
            do { return try await store() } catch let error as BackupError where error.code == "version_conflict" {
                if attempt == attempts { throw error }
            }
            try await fetchToReplace(keys, confirmed)
        }
    }

    /// Encrypts the log, or that of a version that is being restored.
    private func upload(by keys: Keys, restored: Decrypted? = nil) throws -> Upload {
        let log = restored?.log ?? state.log
        guard log.count <= largestLog else { throw BackupError.logTooLarge }
        let base = state.base
        let sequence = try nextSequence(
            base: base == nil ? 0 : base?.sequence, highest: state.highest.sequence, restored: restored?.sequence ?? 0)
        return Upload(
            blob: try encrypt(log, with: keys, sequence: sequence, baseSha256: base?.sha256), sequence: sequence,
            baseSha256: base?.sha256, logSha256: sha256(log), restored: restored?.log,
            insteadOf: restored == nil ? nil : sha256(state.log))
    }

    private func send(_ upload: Upload) async throws {
        try save { $0.unsent = upload }
        do {
            let receipt = try await repeated(keys()) { client in
                let receipt = try await client.store(upload.body)
                guard receipt.isReceipt(of: upload.blob) else { throw BackupError.lost(nil) }
                return receipt
            }
            try acknowledged(upload, receipt.version)
        } catch let error as BackupError where !error.isLost {
            try save { $0.unsent = nil }
            throw error
        }
    }

    private func acknowledged(_ upload: Upload, _ version: Int64) throws {
        var log = state.log
        if let restored = upload.restored {  // what was added while the answer was lost stays
            log = upload.insteadOf == sha256(log) ? restored : try merged(restored)
        }
        try save { state in
            acknowledge(upload, version, in: &state)
            state.log = log
        }
    }

    private nonisolated func acknowledge(_ upload: Upload, _ version: Int64?, in state: inout State) {
        state.unsent = nil
        state.base = Base(
            sha256: upload.seen.sha256 ?? "", sequence: upload.sequence, logSha256: upload.logSha256, version: version)
        state.highest = state.highest.higher(upload.seen)
        if state.highest.sha256 == upload.seen.sha256 { state.highestLog = upload.logSha256 }
    }

    /// Returns the receipts of the kept versions, newest first. Tells the person if there is none any more.
    private func listed(by keys: Keys) async throws -> [Version] {
        let versions = try await list(keys)
        if versions.isEmpty { compare(.nothing, nil) }
        return versions
    }

    private func list(_ keys: Keys) async throws -> [Version] { try await repeated(keys) { try await $0.list() } }

    /// Fetches a version that fits its receipt and what was asked for. Returns nil for a 304.
    private func fetched(
        _ keys: Keys, ifNoneMatch: String? = nil, version: Int64? = nil, sha256: String? = nil,
        _ fetch: @escaping @Sendable (Client) async throws -> Components.Schemas.Backup?
    ) async throws -> Fetched? {
        do {
            return try await repeated(keys, ifNoneMatch: ifNoneMatch) { client in
                let backup = try await fetch(client)
                do { return try backup?.checked(version: version, sha256: sha256) } catch { throw BackupError.misfit }
            }
        }
    }

    /// Sends a request that may be repeated, freshly signed each time, until there is an answer.
    private func repeated<Answer: Sendable>(
        _ keys: Keys, ifNoneMatch: String? = nil, _ send: @Sendable (Client) async throws -> Answer
    ) async throws -> Answer {
        var lost = false
        return try await repeated(keys, ifNoneMatch: ifNoneMatch, lost: &lost, send)
    }

    /// The same. `lost` becomes true if an answer is lost.
    private func repeated<Answer: Sendable>(
        _ keys: Keys, ifNoneMatch: String? = nil, lost: inout Bool,
        _ send: @Sendable (Client) async throws -> Answer
    ) async throws -> Answer {
        for attempt in 1..<attempts {
            do { return try await once(keys, ifNoneMatch: ifNoneMatch, send) } catch let error as BackupError
                where error.mayBeRepeated
            {
                lost = lost || error.isLost
                try await wait(attempt, error)
            }
        }
        return try await once(keys, ifNoneMatch: ifNoneMatch, send)
    }

    private func wait(_ attempt: Int, _ error: BackupError) async throws {
        let seconds = max(2 * Double(attempt), Double(error.retryAfter ?? 0))
        if seconds > longestPause { throw error }
        try await pause(seconds)
    }

    /// Sends a request. If the device's clock is wrong, corrects for it and sends the request once more.
    private func once<Answer: Sendable>(
        _ keys: Keys, ifNoneMatch: String? = nil, _ send: @Sendable (Client) async throws -> Answer
    ) async throws -> Answer {
        do { return try await send(server.client(proofs(keys), ifNoneMatch: ifNoneMatch)) } catch let error
            as BackupError
        {
            guard error.code == "signature_expired", let serverTime = error.problem?.serverTime else { throw error }
            clockOffset = serverTime - Int(now())
            try clockWasAhead(Double(-clockOffset))
        }
        return try await send(server.client(proofs(keys), ifNoneMatch: ifNoneMatch))
    }

    /// An attempt to change the password, or to delete the account, may act for longer by these seconds.
    private func clockWasAhead(_ seconds: Double) throws {
        try save { state in
            if let change = state.change, seconds > change.ahead {
                state.change?.keepUntil += seconds - change.ahead
                state.change?.ahead = seconds
            }
            if let deletion = state.deletion, seconds > deletion.ahead {
                state.deletion?.registerAfter += seconds - deletion.ahead
                state.deletion?.ahead = seconds
            }
        }
    }

    private func proofs(_ keys: Keys) -> Proofs {
        Proofs(keys: keys, secret: server.secret, created: Int(now()) + clockOffset)
    }

    private func keys() throws -> Keys {
        guard let keys = state.keys else { throw BackupError.notSignedIn }
        return keys
    }

    /// Runs a derivation, which takes a while, elsewhere.
    private nonisolated func derive(_ keys: @escaping @Sendable () throws -> Keys) async rethrows -> Keys { try keys() }

    private func save(_ change: (inout State) -> Void) throws {
        var changed = state
        change(&changed)
        guard changed != state else { return }
        try onSave(changed)
        state = changed
    }

    // MARK: One call at a time

    private func begin() async {
        if isBusy { await withCheckedContinuation { waiting.append($0) } }
        isBusy = true
    }

    private func end() {
        isBusy = !waiting.isEmpty
        if !waiting.isEmpty { waiting.removeFirst().resume() }
    }
}

extension BackupError {
    var problem: Problem? {
        switch self {
        case .refused(let problem): problem
        case .lost(let problem): problem
        default: nil
        }
    }

    /// The code of a refusal. That of a lost answer means nothing.
    var code: String? { if case .refused(let problem) = self { problem.code } else { nil } }
    /// After how many seconds the request may be repeated, if the server said so.
    public var retryAfter: Int? { problem?.retryAfter }
    /// Whether the request may have been done.
    var isLost: Bool { if case .lost = self { true } else { self == .misfit } }
    /// Whether the device repeats the request by itself, if it is one that may be repeated.
    var mayBeRepeated: Bool { isLost || problem?.status == 408 }
}
