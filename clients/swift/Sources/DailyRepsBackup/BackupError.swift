import DailyRepsCrypto
import Foundation

/// What went wrong between a device and the server. `errorDescription` is a sentence for a person. No text of an error
/// has a key, a blob, or a word that the server sent.
///
/// The functions also throw the errors of `DailyRepsCrypto`, what the app's own closures throw, and
/// `CancellationError`.
public enum BackupError: Error, Sendable, Equatable {
    /// The server refused the request, so it was not done. Go by ``Problem/code``.
    case refused(Problem)
    /// No answer came, or it is not one of the contract, as a proxy's page, or the server failed. The request may have
    /// been done or not. Call the same function again later: it does what is right after a lost answer.
    case lost(Problem?)
    /// The answer to a fetch was another version than the one that was asked for, or it did not fit its receipt, each
    /// time. Offer another version, or ``Device/replaceUnreadable()``.
    case misfit
    /// A change of the password may have happened or not. The new one is not in force. Call ``Device/sync()``, which
    /// sends the change again, or ``Device/settleChange()``.
    case changeNotSettled
    /// The account is being deleted. ``Device/delete(confirmed:)`` goes on with it. After 10 minutes it asks to be
    /// confirmed.
    case beingDeleted
    /// This device keeps the password as an old one. Choose another.
    case oldPassword
    /// This ``State`` belongs to another username. Ask whose log it is, and use another state.
    case anotherUser
    /// Nobody is signed in.
    case notSignedIn
    /// The version is not listed. It was dropped, or it never existed.
    case notListed
    /// The log has more than 5,242,811 bytes.
    case logTooLarge
}

/// A problem (RFC 9457) in the server's answer.
public struct Problem: Sendable, Equatable {
    /// Which problem it is. There may be new ones: go by the status then.
    public let code: String
    /// The status of the answer.
    public let status: Int
    /// After how many seconds the request may be repeated.
    public let retryAfter: Int?
    /// Name it if you report the problem to the operator.
    public let requestId: String?
    /// The server's clock in Unix seconds. With `signature_expired`.
    let serverTime: Int?
}

extension BackupError: LocalizedError, CustomStringConvertible, CustomDebugStringConvertible {
    public var errorDescription: String? {
        switch self {
        case .refused(let problem): sentences[problem.code] ?? "The server refused this. An update of the app may help."
        case .lost: "The server cannot be reached right now, or it is not known whether it did this. Try again later."
        case .misfit: "This version cannot be fetched. Choose another version."
        case .changeNotSettled: "The new password is not in force yet. Try again later."
        case .beingDeleted: "The account is being deleted."
        case .oldPassword: "This was an earlier password of yours. Choose another one."
        case .anotherUser: "The log on this device belongs to another username."
        case .notSignedIn: "Nobody is signed in."
        case .notListed: "This version is not stored any more."
        case .logTooLarge: "The log is too large to back up."
        }
    }

    /// For a developer's log.
    public var description: String {
        switch self {
        case .refused(let problem): "refused: \(problem)"
        case .lost(let problem): "lost: \(problem?.description ?? "no answer of the contract")"
        default: errorDescription ?? ""
        }
    }

    public var debugDescription: String { description }
}

extension Problem: Redacted {
    // Whoever answers may repeat what was sent. So only a known code is shown, and a request id that cannot be a key.
    public var description: String {
        let known = sentences[code] != nil || code == "internal_error" || code == "unavailable"
        let request = requestId.flatMap { $0.utf8.count <= 36 ? ", request \($0)" : nil } ?? ""
        return "\(status) \(known ? code : "unknown code")\(request)"
    }
}

private let bug = "The app has a mistake, or it is too old for this server. Update the app."

/// What a person is told, by the code of a problem.
private let sentences = [
    "account_damaged":
        "The account is damaged on the server. Only its operator can help. Nothing on this device is lost.",
    "app_outdated": "This version of the app is too old. Update the app.",
    "backup_damaged": "This version is damaged on the server. Choose another version.",
    "credentials_invalid":
        "The username or the password is wrong, or a newer version of the app moved this account: update the app.",
    "digest_mismatch": bug,
    "headers_too_large": bug,
    "malformed_request": bug,
    "method_not_allowed": bug,
    "no_backup": "Nothing is stored yet.",
    "no_such_version": "This version is not stored any more.",
    "not_found": bug,
    "payload_too_large": "The log is too large to back up.",
    "rate_limited": "There were too many attempts. Wait a while, then try again.",
    "recently_deleted": "This username was deleted a few minutes ago. Wait a while, then register it.",
    "request_timeout": "The connection is too slow. Nothing was changed. Try again on a better one.",
    "signature_expired": "The clock of this device is wrong.",
    "signature_invalid": bug,
    "signature_missing": bug,
    "storage_full": "The server has no space left. Try again later.",
    "unsupported_media_type": bug,
    "username_taken": "This username is taken. Choose another, or sign in with its password.",
    "validation_failed": bug,
    "version_conflict": "Another device has stored a version since. Try again.",
]
