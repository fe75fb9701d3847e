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
        case .refused(let problem): problem.sentence
        case .lost(let problem): problem?.sentence ?? noAnswer
        case .misfit: noAnswer
        case .changeNotSettled:
            "The change of the password is not complete, and the new password is not in force. "
                + "Try again when there is a connection."
        case .beingDeleted: "This account is being deleted. Confirm the deletion to go on with it."
        case .oldPassword: "This was an earlier password of yours. Choose another one."
        case .anotherUser: "The log on this device belongs to another username."
        case .notSignedIn: "Nobody is signed in."
        case .notListed: "This version is not kept any more. Choose another one."
        case .logTooLarge: sentences["payload_too_large"]
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
    /// What a person can be told.
    var sentence: String {
        if let sentence = sentences[code] { return sentence }
        switch status {
        case 408: return sentences["request_timeout"] ?? later
        case 429: return sentences["rate_limited"] ?? later
        case 500...: return later
        default:
            return "The server refused this, and nothing was changed. Update the app, or report this to its publisher."
        }
    }

    // Whoever answers may repeat what was sent, so a request id is shown only if it cannot be a key.
    public var description: String {
        let request = requestId.flatMap { $0.utf8.count <= 36 ? ", request \($0)" : nil } ?? ""
        return "\(status) \(code)\(request)"
    }

    /// Whether a text may be the code of a problem. A hostile server could send back a key in its place.
    static func isCode(_ text: String) -> Bool {
        let hex = text.split { !"0123456789abcdef".contains($0) }.map(\.count).max() ?? 0
        return (1...64).contains(text.utf8.count) && hex < 24
            && text.utf8.allSatisfy { "abcdefghijklmnopqrstuvwxyz0123456789_".utf8.contains($0) }
    }
}

private let noAnswer = "There is no answer from the server. Nothing is lost. Try again later."
private let later = "The server cannot answer at the moment. Nothing is lost. Try again later."
private let update = "The server does not accept this version of the app. Update the app."

/// What a person is told, by the code of a problem.
private let sentences = [
    "signature_invalid": update,
    "signature_expired": "The clock of this device is wrong. Correct it, and try again.",
    "credentials_invalid":
        "The username or the password is wrong, or a newer version of the app moved this account: update the app.",
    "app_outdated": update,
    "no_backup": "There is no backup yet.",
    "no_such_version": "This version is not kept any more. Choose another one.",
    "request_timeout": "The connection is too slow. Try again on a better one.",
    "username_taken": "This username is taken. Choose another one, or enter the password of this one.",
    "recently_deleted": "This account was deleted a moment ago. Try again in a quarter of an hour.",
    "version_conflict": "Another device has stored a newer backup. Try again.",
    "payload_too_large": "The log is too large to back up.",
    "rate_limited": "That was too often. Try again later.",
    "account_damaged":
        "The account is damaged on the server, and only its operator can help. Keep the app: it has your log.",
    "backup_damaged": "This version is damaged on the server. Choose another one.",
    "internal_error": later,
    "unavailable": later,
    "storage_full": "The server has no room for the backup. Try again later.",
]
